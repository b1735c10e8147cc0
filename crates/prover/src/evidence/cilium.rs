//! The words of Cilium's agent: `cilium-dbg monitor -j`, `endpoint list -o json`.
//!
//! Drops come as JSON. Policy verdicts have no JSON form and come as text lines even with `-j`, and so does the
//! count of lost events; drops in text form are understood too, should an older agent print them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use probe::Protocol;
use serde::Deserialize;
use serde_json::Value;

use super::{Action, EndpointFact, FiveTuple, FlowEvent, FlowReport, Repository};
use crate::model::PodRef;

/// A line of the monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorLine {
    /// A drop or a policy verdict of a TCP or UDP packet.
    Flow(FlowEvent),
    /// So many events were lost.
    Lost(u64),
    /// The monitor complains in its log: it lost the agent, or never found it.
    Complaint(String),
    /// Anything else.
    Other,
}

/// Reads one line of `cilium-dbg monitor -j --numeric --type drop --type policy-verdict`.
pub fn parse_monitor_line(line: &str, heard: Timestamp) -> MonitorLine {
    let line = line.trim();
    if line.starts_with('{') {
        return json_event(line, heard).map_or(MonitorLine::Other, MonitorLine::Flow);
    }
    if let Some(count) = lost(line) {
        return MonitorLine::Lost(count);
    }
    if line.starts_with("time=")
        && ["level=warn", "level=error", "level=fatal"]
            .iter()
            .any(|level| line.contains(level))
    {
        return MonitorLine::Complaint(complaint(line));
    }
    let event = if let Some(rest) = line.strip_prefix("xx drop (") {
        text_drop(rest, heard)
    } else if let Some(rest) = line.strip_prefix("Policy verdict log: ") {
        text_verdict(rest, heard)
    } else {
        None
    };
    event.map_or(MonitorLine::Other, MonitorLine::Flow)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonDrop {
    #[serde(rename = "type")]
    kind: String,
    reason: Option<String>,
    source: Option<u32>,
    src_label: Option<u32>,
    dst_label: Option<u32>,
    #[serde(rename = "dstID")]
    dst_id: Option<u32>,
    summary: Option<JsonSummary>,
}

#[derive(Deserialize)]
struct JsonSummary {
    tcp: Option<String>,
    udp: Option<String>,
    l3: Option<JsonFlow>,
    l4: Option<JsonFlow>,
}

#[derive(Deserialize)]
struct JsonFlow {
    src: String,
    dst: String,
}

impl JsonSummary {
    fn tuple(&self) -> Option<FiveTuple> {
        let protocol = match (&self.tcp, &self.udp) {
            (Some(_), None) => Protocol::Tcp,
            (None, Some(_)) => Protocol::Udp,
            _ => return None,
        };
        let (l3, l4) = (self.l3.as_ref()?, self.l4.as_ref()?);
        let end = |address: &str, port: &str| {
            let address: IpAddr = address.parse().ok()?;
            Some(SocketAddr::new(address, port.parse().ok()?))
        };
        Some(FiveTuple {
            protocol,
            source: end(&l3.src, &l4.src)?,
            destination: end(&l3.dst, &l4.dst)?,
        })
    }
}

fn json_event(line: &str, heard: Timestamp) -> Option<FlowEvent> {
    let drop: JsonDrop = serde_json::from_str(line).ok()?;
    if drop.kind != "drop" {
        return None;
    }
    Some(FlowEvent {
        tuple: drop.summary?.tuple()?,
        report: FlowReport::Dropped {
            reason: drop.reason?,
        },
        source_identity: drop.src_label,
        destination_identity: drop.dst_label,
        // An ingress drop names the destination's endpoint; an egress drop has only the source's.
        endpoint: drop.dst_id.filter(|id| *id != 0).or(drop.source),
        heard,
    })
}

/// `CPU 03: Lost 17 events`
fn lost(line: &str) -> Option<u64> {
    let (_, rest) = line.strip_prefix("CPU ")?.split_once(": Lost ")?;
    rest.strip_suffix(" events")?.parse().ok()
}

/// `time=… level=error msg="Cannot open monitor socket" subsys=cilium-dbg error="…"`, without the time.
fn complaint(line: &str) -> String {
    line.split_once("msg=")
        .map_or(line, |(_, rest)| rest)
        .to_owned()
}

/// `Policy denied) flow 0x0 to endpoint 12, ifindex 7, file bpf_lxc.c:2154, , identity 1->2: 10.0.0.1:1 -> 10.0.0.2:80 tcp SYN`
fn text_drop(rest: &str, heard: Timestamp) -> Option<FlowEvent> {
    let (reason, rest) = rest.split_once(") flow ")?;
    let (details, connection) = rest.split_once(": ").and_then(|(details, connection)| {
        // `file bpf_lxc.c:2154` has no blank after its colon, so the first ": " ends the identities.
        Some((details, connection)).filter(|_| details.contains("identity"))
    })?;
    let identities = details.rsplit_once("identity ")?.1;
    let (from, to) = identities.split_once("->")?;
    Some(FlowEvent {
        tuple: connection_summary(connection)?,
        report: FlowReport::Dropped {
            reason: reason.to_owned(),
        },
        source_identity: from.trim().parse().ok(),
        destination_identity: to.trim().parse().ok(),
        endpoint: field(details, "to endpoint "),
        heard,
    })
}

/// `flow 0x0 local EP ID 12, remote ID 34, proto 6, ingress, action audit, auth: disabled, match none, 10.0.0.1:1 -> 10.0.0.2:80 tcp SYN`
fn text_verdict(rest: &str, heard: Timestamp) -> Option<FlowEvent> {
    let (details, connection) = rest.rsplit_once(", ").and_then(|_| {
        // The TCP flags at the end may have blanks and commas of their own, so cut before the source address.
        let arrow = rest.find(" -> ")?;
        let start = rest[..arrow].rfind(", ")?;
        Some((&rest[..start], &rest[start + 2..]))
    })?;
    let words: Vec<&str> = details.split(", ").collect();
    let direction = words
        .iter()
        .find(|word| ["ingress", "egress"].contains(word))?;
    let action = words.iter().find_map(|word| word.strip_prefix("action "))?;
    let action = match action {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        "redirect" => Action::Redirect,
        action if action.starts_with("audit") => Action::Audit,
        _ => return None,
    };
    let local: Option<u32> = field(details, "local EP ID ");
    let remote: Option<u32> = field(details, "remote ID ");
    let ingress = *direction == "ingress";
    Some(FlowEvent {
        tuple: connection_summary(connection)?,
        report: FlowReport::Verdict {
            action,
            direction: (*direction).to_owned(),
        },
        source_identity: remote.filter(|_| ingress),
        destination_identity: remote.filter(|_| !ingress),
        endpoint: local,
        heard,
    })
}

/// The number after `label`, up to the next comma.
fn field(details: &str, label: &str) -> Option<u32> {
    let rest = details.split_once(label)?.1;
    rest.split(',').next()?.trim().parse().ok()
}

/// `10.0.0.1:43210 -> 10.0.0.2:80 tcp SYN`
fn connection_summary(text: &str) -> Option<FiveTuple> {
    let (source, rest) = text.split_once(" -> ")?;
    let mut words = rest.split([' ', ',']);
    let destination = words.next()?.parse().ok()?;
    let protocol = match words.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some(FiveTuple {
        protocol,
        source: source.trim().parse().ok()?,
        destination,
    })
}

/// The answer is not a policy repository.
#[derive(Debug, thiserror::Error)]
#[error("the agent's policy repository cannot be read")]
pub struct NotARepository(#[source] serde_json::Error);

/// Reads `cilium-dbg policy get -o json`: a revision, and the rules as JSON in a string.
///
/// The rules' shape changes from version to version; the labels that tell where a rule comes from do not.
pub fn parse_repository(json: &str) -> Result<Repository, NotARepository> {
    #[derive(Deserialize)]
    struct Raw {
        policy: String,
        revision: i64,
    }
    let raw: Raw = serde_json::from_str(json).map_err(NotARepository)?;
    let rules: Value = serde_json::from_str(&raw.policy).map_err(NotARepository)?;
    let mut uids = BTreeSet::new();
    collect_uids(&rules, &mut uids);
    Ok(Repository {
        revision: raw.revision,
        uids,
    })
}

fn collect_uids(value: &Value, uids: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_uids(item, uids)),
        Value::Object(fields) => {
            let text = |name: &str| fields.get(name).and_then(Value::as_str);
            if let (Some("io.cilium.k8s.policy.uid"), Some(uid)) = (text("key"), text("value")) {
                uids.insert(uid.to_owned());
            }
            fields.values().for_each(|field| collect_uids(field, uids));
        }
        _ => {}
    }
}

/// The answer is not a list of endpoints.
#[derive(Debug, thiserror::Error)]
#[error("the agent's endpoint list cannot be read")]
pub struct NotAnEndpointList(#[source] serde_json::Error);

/// Reads `cilium-dbg endpoint list -o json`. Endpoints that belong to no pod (host, health) are left out.
pub fn parse_endpoints(json: &str) -> Result<BTreeMap<PodRef, EndpointFact>, NotAnEndpointList> {
    let endpoints: Vec<Value> = serde_json::from_str(json).map_err(NotAnEndpointList)?;
    Ok(endpoints.iter().filter_map(endpoint).collect())
}

fn endpoint(value: &Value) -> Option<(PodRef, EndpointFact)> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let number = |pointer: &str| {
        let number = value.pointer(pointer).and_then(Value::as_u64)?;
        u32::try_from(number).ok()
    };
    let identifiers = "/status/external-identifiers";
    let pod = match (
        text(&format!("{identifiers}/k8s-namespace")),
        text(&format!("{identifiers}/k8s-pod-name")),
    ) {
        (Some(namespace), Some(name)) => PodRef::new(namespace, name),
        _ => text(&format!("{identifiers}/pod-name"))?.parse().ok()?,
    };
    let mode = text("/status/policy/realized/policy-enabled").unwrap_or("none");
    let (audit_mode, mode) = match mode.strip_prefix("audit-") {
        Some(mode) => (true, mode),
        None => (false, mode),
    };
    let audit_option = ["/status/realized/options", "/spec/options"]
        .iter()
        .any(|options| text(&format!("{options}/PolicyAuditMode")) == Some("Enabled"));
    Some((
        pod,
        EndpointFact {
            id: number("/id")?,
            identity: number("/status/identity/id"),
            state: text("/status/state").unwrap_or("unknown").to_owned(),
            ingress: matches!(mode, "ingress" | "both"),
            egress: matches!(mode, "egress" | "both"),
            audit: audit_mode || audit_option,
            revision: value
                .pointer("/status/policy/realized/policy-revision")
                .and_then(Value::as_i64),
        },
    ))
}
