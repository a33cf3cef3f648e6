//! Names of the mesh and their addresses.
//!
//! Source: Kuma `pkg/dns/dpapi` (the document at `/dns`).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordType};
use serde_json::Value;

/// TTL where the document has none, seconds. Kuma's.
const DEFAULT_TTL: u32 = 30;

/// An immutable set of names.
#[derive(Debug)]
pub struct Table {
    names: HashMap<LowerName, Addresses>,
    ttl: u32,
    /// Labels that the control plane wants on the server's metrics.
    pub labels: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Addresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl Default for Table {
    fn default() -> Self {
        Table { names: HashMap::new(), ttl: DEFAULT_TTL, labels: Vec::new() }
    }
}

impl Table {
    /// Reads `{"records":[{"name","ips":[]}],"ttl":30,"extraLabels":{}}`. The second value lists what was left out: names and addresses that are none,
    /// each with its place.
    ///
    /// # Errors
    /// No JSON, or another shape.
    pub fn parse(document: &[u8]) -> Result<(Table, Vec<String>), String> {
        let document: Value = serde_json::from_slice(document).map_err(|error| error.to_string())?;
        if !document.is_object() {
            return Err("expected an object with the field records".into());
        }
        let mut left_out = Vec::new();
        let mut names = HashMap::new();
        let records = match document.get("records") {
            None | Some(Value::Null) => &[],
            Some(Value::Array(records)) => records.as_slice(),
            Some(_) => return Err("records: expected a list".into()),
        };
        for (at, record) in records.iter().enumerate() {
            let Some(text) = record.get("name").and_then(Value::as_str) else {
                return Err(format!("records[{at}].name: expected a string"));
            };
            let name = match Name::from_ascii(format!("{}.", text.trim_end_matches('.'))) {
                Ok(name) if !text.is_empty() => name,
                Ok(_) => {
                    left_out.push(format!("records[{at}].name: empty"));
                    continue;
                }
                Err(error) => {
                    left_out.push(format!("records[{at}].name: {text:?} is no DNS name: {error}"));
                    continue;
                }
            };
            let addresses = addresses(at, record, &mut left_out)?;
            names.insert(LowerName::from(name), addresses);
        }
        let ttl = match document.get("ttl") {
            None | Some(Value::Null) => DEFAULT_TTL,
            Some(ttl) => ttl
                .as_u64()
                // RFC 2181, section 8: TTLs have 31 bits.
                .and_then(|ttl| u32::try_from(ttl).ok().filter(|ttl| *ttl <= i32::MAX as u32))
                .ok_or_else(|| format!("ttl: {ttl}, expected seconds"))?,
        };
        let labels = document
            .get("extraLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        Ok((Table { names, ttl, labels }, left_out))
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The records of a name: `None` if the mesh does not have it or does not speak for this type. A name that has no address of the family has no
    /// records, and that is an answer. `owner` is the name as the client wrote it.
    pub fn look_up(&self, name: &LowerName, owner: &Name, kind: RecordType) -> Option<Vec<Record>> {
        let addresses = self.names.get(name)?;
        let record = |data: RData| Record::from_rdata(owner.clone(), self.ttl, data);
        match kind {
            RecordType::A => Some(addresses.v4.iter().map(|ip| record(RData::A((*ip).into()))).collect()),
            RecordType::AAAA => Some(addresses.v6.iter().map(|ip| record(RData::AAAA((*ip).into()))).collect()),
            _ => None,
        }
    }
}

fn addresses(at: usize, record: &Value, left_out: &mut Vec<String>) -> Result<Addresses, String> {
    let mut addresses = Addresses::default();
    let ips = match record.get("ips") {
        None | Some(Value::Null) => return Ok(addresses),
        Some(Value::Array(ips)) => ips,
        Some(_) => return Err(format!("records[{at}].ips: expected a list")),
    };
    for (index, ip) in ips.iter().enumerate() {
        match ip.as_str().map(str::parse::<IpAddr>) {
            Some(Ok(IpAddr::V4(ip))) => addresses.v4.push(ip),
            Some(Ok(IpAddr::V6(ip))) => addresses.v6.push(ip),
            Some(Err(_)) | None => left_out.push(format!("records[{at}].ips[{index}]: {ip} is no IP address")),
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(table: &Table, name: &str, kind: RecordType) -> Option<Vec<String>> {
        let name = Name::from_ascii(name).expect("a name");
        table.look_up(&LowerName::from(&name), &name, kind).map(|records| {
            records.iter().map(|record| format!("{} {} {}", record.name, record.ttl, record.data)).collect()
        })
    }

    #[test]
    fn kumas_document() {
        // From Kuma's golden file of the DNS generator.
        let (table, left_out) = Table::parse(
            br#"{"records":[{"name":"backend.test-ns.svc.8080.mesh","ips":["240.0.0.0","::ffff:f000:0"]},{"name":"backend_test-ns_svc_8080.mesh",
                "ips":["240.0.0.0","::ffff:f000:0"]},{"name":"httpbin.mesh","ips":["240.0.0.1","fd00:fd00::f000:1"]},{"name":"v4.mesh","ips":["240.0.0.2"]}],
                "ttl":30,"extraLabels":{"kuma_workload":"backend","mesh":"default"}}"#,
        )
        .expect("a table");
        assert!(left_out.is_empty() && table.len() == 4);
        assert_eq!(look_up(&table, "HttpBin.mesh.", RecordType::A), Some(vec!["HttpBin.mesh. 30 240.0.0.1".into()]));
        assert_eq!(
            look_up(&table, "httpbin.mesh.", RecordType::AAAA),
            Some(vec!["httpbin.mesh. 30 fd00:fd00::f000:1".into()])
        );
        assert_eq!(
            look_up(&table, "backend_test-ns_svc_8080.mesh.", RecordType::A),
            Some(vec!["backend_test-ns_svc_8080.mesh. 30 240.0.0.0".into()])
        );
        // Trap 22: a name without that family is no missing name.
        assert_eq!(look_up(&table, "v4.mesh.", RecordType::AAAA), Some(vec![]));
        assert_eq!(look_up(&table, "v4.mesh.", RecordType::MX), None);
        assert_eq!(look_up(&table, "nobody.mesh.", RecordType::A), None);
        assert_eq!(table.labels, [("kuma_workload".into(), "backend".into()), ("mesh".into(), "default".into())]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (document, needle) in [
            (&b"{"[..], "EOF"),
            (b"[]", "object"),
            (br#"{"records":{}}"#, "records: expected a list"),
            (br#"{"records":[{"ips":[]}]}"#, "records[0].name"),
            (br#"{"records":[{"name":"a","ips":"x"}]}"#, "records[0].ips"),
            (br#"{"records":[],"ttl":-1}"#, "ttl: -1"),
        ] {
            let error = Table::parse(document).expect_err("an error");
            assert!(error.contains(needle), "{error}");
        }
        let (table, left_out) = Table::parse(
            br#"{"records":[{"name":"a.mesh","ips":["1.2.3.4","300.1.1.1",7]},{"name":"","ips":[]},{"name":"a..b","ips":[]}]}"#,
        )
        .expect("a table");
        assert_eq!(table.len(), 1);
        assert_eq!(left_out.len(), 4, "{left_out:?}");
        assert!(left_out[0].starts_with("records[0].ips[1]: \"300.1.1.1\""), "{left_out:?}");
    }
}
