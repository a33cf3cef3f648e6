//! `filters.http.grpc_stats.v3.FilterConfig`.

use shika_data::model::http_filter::{GrpcMethods, GrpcStatsFilter};
use shika_proto::envoy::{
    config::core::v3::GrpcMethodList,
    extensions::filters::http::grpc_stats::v3::{FilterConfig, filter_config::PerMethodStatSpecifier},
};

use super::super::{Compiled, Fault, Within, non_empty};

/// The filter.
pub(crate) fn filter(from: &FilterConfig) -> Compiled<GrpcStatsFilter> {
    let methods = match &from.per_method_stat_specifier {
        Some(PerMethodStatSpecifier::StatsForAllMethods(all)) if all.value => {
            GrpcMethods::All { replace_dots: from.replace_dots_in_grpc_service_name }
        }
        None | Some(PerMethodStatSpecifier::StatsForAllMethods(_)) => GrpcMethods::Listed(Vec::new()),
        Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => {
            GrpcMethods::Listed(listed(list).within("individual_method_stats_allowlist")?)
        }
    };
    if from.replace_dots_in_grpc_service_name && !matches!(methods, GrpcMethods::All { .. }) {
        return Err(Fault::new(
            "replace_dots_in_grpc_service_name",
            "has an effect with stats_for_all_methods only; leave it out",
        ));
    }
    Ok(GrpcStatsFilter { methods, upstream_time: from.enable_upstream_stats })
}

fn listed(from: &GrpcMethodList) -> Compiled<Vec<(Box<str>, Box<str>)>> {
    let mut methods = Vec::new();
    for (index, service) in from.services.iter().enumerate() {
        let name = non_empty(&service.name, "name").at("services", index)?;
        if service.method_names.is_empty() {
            return Err(Fault::new("method_names", "value must contain at least 1 item(s)")).at("services", index);
        }
        methods.extend(service.method_names.iter().map(|method| (name.into(), method.as_str().into())));
    }
    Ok(methods)
}
