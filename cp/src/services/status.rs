//! What is known of services: whether they have instances, which identities these show, whether they take mutual TLS (Kuma
//! `pkg/core/resources/apis/meshservice/status`, `meshmultizoneservice/status_updater.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Held, Input, effective_labels, insights, is_local};
use crate::resource::{
    Condition, Dataplane, DataplaneInsight, DataplaneProxies, Inbound, InboundState, MatchedMeshService, MeshService,
    Meta, SERVICE_TAG, ServiceIdentity, ServiceIdentityKind, ServicePort, ServiceState, Spec, TargetPort, TlsStatus,
};
use crate::store::{Store, StoreError};

/// Brings the state of the MeshServices of this zone up to date.
pub(super) async fn mesh_services(
    store: &Store,
    input: &Input,
    zone: &str,
    services: &mut [Held],
) -> Result<(), StoreError> {
    if services.iter().all(|held| held.wanted.is_none()) {
        return Ok(());
    }
    let insights = insights(store, &input.name).await?;
    let mtls = input.mesh.enabled_backend().is_some();
    for held in services {
        let Some(resource) = held.wanted.as_mut().filter(|resource| is_local(&resource.meta)) else { continue };
        let Spec::MeshService(service) = &mut resource.spec else { continue };
        let proxies: Vec<&(Meta, Arc<Dataplane>)> =
            input.dataplanes.iter().filter(|(meta, dataplane)| selects(service, meta, dataplane, zone)).collect();
        let known: Vec<(&Dataplane, Option<&DataplaneInsight>)> = proxies
            .iter()
            .map(|(meta, dataplane)| (dataplane.as_ref(), insights.get(&meta.name).map(Arc::as_ref)))
            .collect();
        let counts = count(&known, &service.ports);
        let state = if counts.healthy > 0 { ServiceState::Available } else { ServiceState::Unavailable };
        let identities = identities(&known);
        let tls = tls(service.status.tls.status, mtls, &known);
        let unchanged = service.state == state
            && service.identities == identities
            && service.status.tls.status == tls
            && service.status.dataplane_proxies == counts;
        if unchanged {
            continue;
        }
        let service = Arc::make_mut(service);
        service.state = state;
        service.identities = identities;
        service.status.tls.status = tls;
        service.status.dataplane_proxies = counts;
    }
    Ok(())
}

/// Whether a Dataplane is an instance of a MeshService. One without inbounds is of none.
fn selects(service: &MeshService, meta: &Meta, dataplane: &Dataplane, zone: &str) -> bool {
    let selector = &service.selector;
    if let Some(by_name) = &selector.dataplane_ref {
        return by_name.name == meta.name && !dataplane.inbounds().is_empty();
    }
    if let Some(tags) = &selector.dataplane_tags {
        let has = |inbound: &Inbound| tags.iter().all(|(tag, value)| inbound.tags.get(tag) == Some(value));
        return !tags.is_empty() && dataplane.inbounds().iter().any(has);
    }
    if let Some(labels) = &selector.dataplane_labels {
        return !dataplane.inbounds().is_empty() && labels.matches(&effective_labels(meta, zone));
    }
    false
}

/// Whether a port of a service leads to an inbound.
fn leads_to(port: &ServicePort, inbound: &Inbound) -> bool {
    match port.target() {
        TargetPort::Number(number) => number == inbound.port,
        TargetPort::Name(name) => name == inbound.name,
    }
}

fn count(proxies: &[(&Dataplane, Option<&DataplaneInsight>)], ports: &[ServicePort]) -> DataplaneProxies {
    let mut counts = DataplaneProxies::default();
    for (dataplane, insight) in proxies {
        counts.total += 1;
        counts.connected += u32::from(insight.is_some_and(DataplaneInsight::is_online));
        let ready = |inbound: &Inbound| inbound.state == InboundState::Ready && inbound.is_healthy();
        let served = |port: &ServicePort| dataplane.inbounds().iter().any(|i| ready(i) && leads_to(port, i));
        counts.healthy += u32::from(ports.iter().all(served));
    }
    counts
}

fn identities(proxies: &[(&Dataplane, Option<&DataplaneInsight>)]) -> Vec<ServiceIdentity> {
    let mut services = BTreeSet::new();
    for (dataplane, _) in proxies {
        services.extend(dataplane.tags().remove(SERVICE_TAG).unwrap_or_default());
    }
    let identity = |value| ServiceIdentity { kind: ServiceIdentityKind::ServiceTag, value };
    services.into_iter().map(identity).collect()
}

/// Whether a service takes mutual TLS. Once it does it stays so while mutual TLS is on: a new instance begins with a certificate.
fn tls(before: TlsStatus, mtls: bool, proxies: &[(&Dataplane, Option<&DataplaneInsight>)]) -> TlsStatus {
    if !mtls {
        return TlsStatus::NotReady;
    }
    let certified = |insight: &Option<&DataplaneInsight>| {
        let mtls = insight.and_then(|insight| insight.mtls.as_ref());
        mtls.is_some_and(|mtls| !mtls.issued_backend.is_empty())
    };
    if before == TlsStatus::Ready || proxies.iter().all(|(_, insight)| certified(insight)) {
        TlsStatus::Ready
    } else {
        TlsStatus::NotReady
    }
}

/// Finds the MeshServices that each MeshMultiZoneService stands for.
pub(super) fn multi_zone_services(services: &[Held], multi_zone: &mut [Held]) {
    for held in multi_zone {
        let Some(resource) = &mut held.wanted else { continue };
        let Spec::MeshMultiZoneService(spec) = &mut resource.spec else { continue };
        let mut matched: Vec<MatchedMeshService> = services
            .iter()
            .filter_map(|held| held.wanted.as_ref())
            .filter(|service| spec.selector.mesh_service.matches(&service.meta.labels))
            .map(|service| matched(&service.meta))
            .collect();
        matched.sort();
        let condition = Condition {
            kind: "MeshServicesMatched".to_owned(),
            status: if matched.is_empty() { "False" } else { "True" }.to_owned(),
            reason: if matched.is_empty() { "NoMatchesFound" } else { "MatchesFound" }.to_owned(),
            message: match matched.len() {
                0 => "Selector does not match any MeshService in this zone".to_owned(),
                count => format!("Matched {count} MeshService(s)"),
            },
        };
        if spec.status.mesh_services != matched || spec.status.conditions.first() != Some(&condition) {
            let status = &mut Arc::make_mut(spec).status;
            status.mesh_services = matched;
            status.conditions = vec![condition];
        }
    }
}

fn matched(meta: &Meta) -> MatchedMeshService {
    let label = |labels: &BTreeMap<String, String>, label: &str| labels.get(label).cloned();
    MatchedMeshService {
        name: label(&meta.labels, "kuma.io/display-name").unwrap_or_else(|| meta.name.clone()),
        namespace: label(&meta.labels, "k8s.kuma.io/namespace").unwrap_or_default(),
        zone: label(&meta.labels, "kuma.io/zone").unwrap_or_default(),
        mesh: meta.mesh.clone(),
    }
}
