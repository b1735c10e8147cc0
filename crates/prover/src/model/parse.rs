//! One object at a time. The shapes here are the API's; unknown policy fields are errors, because a policy with a
//! misspelt field means something else than its author thinks.

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::decide::default_namespace_labels;
use super::{
    ContainerPort, Labels, Namespace, NetworkPolicy, Peer, Pod, PodRef, PolicyPort, PortMatch,
    PortRef, Protocol, Requirement, Rule, Selector, Service, ServicePort,
};

type Found = Vec<String>;

fn read<T: DeserializeOwned>(value: &Value, found: &mut Found) -> Option<T> {
    match T::deserialize(value) {
        Ok(read) => Some(read),
        Err(error) => {
            found.push(error.to_string());
            None
        }
    }
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    namespace: Option<String>,
    #[serde(default)]
    labels: Labels,
}

impl Metadata {
    /// An object without a namespace would land wherever the kubeconfig points.
    fn namespace(&self, found: &mut Found) -> String {
        self.namespace.clone().unwrap_or_else(|| {
            found.push("metadata.namespace is missing".to_owned());
            String::new()
        })
    }
}

#[derive(Deserialize)]
struct RawObject<S> {
    metadata: Metadata,
    spec: S,
}

pub(super) fn namespace(value: &Value, found: &mut Found) -> Option<Namespace> {
    #[derive(Deserialize)]
    struct RawNamespace {
        metadata: Metadata,
    }
    let RawNamespace { metadata } = read(value, found)?;
    let mut labels = metadata.labels;
    labels.extend(default_namespace_labels(&metadata.name));
    Some(Namespace {
        name: metadata.name,
        labels,
    })
}

pub(super) fn pod(value: &Value, found: &mut Found) -> Option<Pod> {
    #[derive(Deserialize)]
    struct RawPodSpec {
        containers: Vec<RawContainer>,
    }
    #[derive(Deserialize)]
    struct RawContainer {
        #[serde(default)]
        ports: Vec<RawContainerPort>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct RawContainerPort {
        name: Option<String>,
        container_port: i64,
        protocol: Option<String>,
    }
    let RawObject { metadata, spec } = read::<RawObject<RawPodSpec>>(value, found)?;
    let mut ports = Vec::new();
    for port in spec
        .containers
        .into_iter()
        .flat_map(|container| container.ports)
    {
        let number = port_number(port.container_port, found);
        let protocol = protocol(port.protocol.as_deref(), found);
        if let (Some(number), Some(protocol)) = (number, protocol) {
            ports.push(ContainerPort {
                name: port.name,
                number,
                protocol,
            });
        }
    }
    Some(Pod {
        reference: PodRef::new(metadata.namespace(found), metadata.name),
        labels: metadata.labels,
        ip: value
            .pointer("/status/podIP")
            .and_then(Value::as_str)
            .and_then(|ip| ip.parse().ok()),
        ports,
    })
}

#[derive(Deserialize)]
#[serde(untagged)]
enum IntOrString {
    Int(i64),
    String(String),
}

pub(super) fn service(value: &Value, found: &mut Found) -> Option<Service> {
    #[derive(Deserialize)]
    struct RawServiceSpec {
        #[serde(default)]
        selector: Labels,
        #[serde(default)]
        ports: Vec<RawServicePort>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct RawServicePort {
        port: i64,
        protocol: Option<String>,
        target_port: Option<IntOrString>,
    }
    let RawObject { metadata, spec } = read::<RawObject<RawServiceSpec>>(value, found)?;
    let mut ports = Vec::new();
    for port in spec.ports {
        let target = match port.target_port {
            None => port_number(port.port, &mut Vec::new()).map(PortRef::Number),
            Some(IntOrString::Int(number)) => port_number(number, found).map(PortRef::Number),
            Some(IntOrString::String(name)) => Some(PortRef::Name(name)),
        };
        let protocol = protocol(port.protocol.as_deref(), found);
        let port = port_number(port.port, found);
        if let (Some(port), Some(protocol), Some(target)) = (port, protocol, target) {
            ports.push(ServicePort {
                port,
                protocol,
                target,
            });
        }
    }
    Some(Service {
        namespace: metadata.namespace(found),
        name: metadata.name,
        selector: spec.selector,
        ports,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPolicySpec {
    // Absent is everything, like `{}`.
    #[serde(default)]
    pod_selector: RawSelector,
    policy_types: Option<Vec<String>>,
    ingress: Option<Vec<RawIngress>>,
    egress: Option<Vec<RawEgress>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIngress {
    from: Option<Vec<RawPeer>>,
    ports: Option<Vec<RawPolicyPort>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEgress {
    to: Option<Vec<RawPeer>>,
    ports: Option<Vec<RawPolicyPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPeer {
    pod_selector: Option<RawSelector>,
    namespace_selector: Option<RawSelector>,
    ip_block: Option<RawBlock>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBlock {
    cidr: String,
    #[serde(default)]
    except: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPolicyPort {
    protocol: Option<String>,
    port: Option<IntOrString>,
    end_port: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSelector {
    match_labels: Option<Labels>,
    match_expressions: Option<Vec<RawExpression>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpression {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

pub(super) fn network_policy(value: &Value, found: &mut Found) -> Option<NetworkPolicy> {
    let RawObject { metadata, spec } = read::<RawObject<RawPolicySpec>>(value, found)?;
    let (ingress_type, egress_type) = policy_types(&spec, found);
    let ingress = spec.ingress.unwrap_or_default();
    let egress = spec.egress.unwrap_or_default();
    let ingress = ingress.into_iter().enumerate().map(|(number, rule)| {
        checked_rule(&format!("ingress[{number}]"), rule.from, rule.ports, found)
    });
    let ingress: Vec<Rule> = ingress.collect();
    let egress = egress.into_iter().enumerate().map(|(number, rule)| {
        checked_rule(&format!("egress[{number}]"), rule.to, rule.ports, found)
    });
    let egress: Vec<Rule> = egress.collect();
    Some(NetworkPolicy {
        subject: selector(spec.pod_selector, "podSelector", found),
        namespace: metadata.namespace(found),
        name: metadata.name,
        ingress: ingress_type.then_some(ingress),
        egress: egress_type.then_some(egress),
    })
}

/// The API server's default: always Ingress, and Egress only if there is at least one egress rule.
/// So `egress: []` without `policyTypes` isolates nothing, which few authors expect.
fn policy_types(spec: &RawPolicySpec, found: &mut Found) -> (bool, bool) {
    let Some(types) = spec.policy_types.as_ref().filter(|types| !types.is_empty()) else {
        return (
            true,
            spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        );
    };
    for unknown in types
        .iter()
        .filter(|name| !["Ingress", "Egress"].contains(&name.as_str()))
    {
        found.push(format!(
            "policyTypes: {unknown:?} is neither Ingress nor Egress"
        ));
    }
    let has = |wanted: &str| types.iter().any(|name| name == wanted);
    (has("Ingress"), has("Egress"))
}

fn checked_rule(
    place: &str,
    peers: Option<Vec<RawPeer>>,
    ports: Option<Vec<RawPolicyPort>>,
    found: &mut Found,
) -> Rule {
    // A list whose members are all wrong must not become an empty one, which would mean everybody.
    let peers = peers.filter(|peers| !peers.is_empty()).map(|peers| {
        let checked = peers.into_iter().map(|raw| peer(raw, place, found));
        checked.collect::<Vec<_>>().into_iter().flatten().collect()
    });
    let ports = ports.filter(|ports| !ports.is_empty()).map(|ports| {
        let checked = ports.into_iter().map(|raw| policy_port(raw, place, found));
        checked.collect::<Vec<_>>().into_iter().flatten().collect()
    });
    Rule { peers, ports }
}

fn peer(raw: RawPeer, place: &str, found: &mut Found) -> Option<Peer> {
    match (raw.ip_block, raw.namespace_selector, raw.pod_selector) {
        (Some(block), None, None) => {
            let cidr = network(&block.cidr, place, found)?;
            let except: Vec<IpNet> = block
                .except
                .iter()
                .filter_map(|range| network(range, place, found))
                .collect();
            for range in except.iter().filter(|range| !cidr.contains(*range)) {
                found.push(format!(
                    "{place}: ipBlock.except {range} is not inside {cidr}"
                ));
            }
            Some(Peer::Block { cidr, except })
        }
        (Some(_), _, _) => {
            found.push(format!(
                "{place}: ipBlock excludes podSelector and namespaceSelector"
            ));
            None
        }
        (None, None, None) => {
            found.push(format!(
                "{place}: a peer needs podSelector, namespaceSelector or ipBlock"
            ));
            None
        }
        (None, namespaces, pods) => Some(Peer::Pods {
            namespaces: namespaces.map(|raw| selector(raw, place, found)),
            pods: pods.map(|raw| selector(raw, place, found)),
        }),
    }
}

fn network(text: &str, place: &str, found: &mut Found) -> Option<IpNet> {
    let network = text.parse().ok();
    if network.is_none() {
        found.push(format!("{place}: {text:?} is not a CIDR"));
    }
    network
}

fn policy_port(raw: RawPolicyPort, place: &str, found: &mut Found) -> Option<PolicyPort> {
    let protocol = protocol(raw.protocol.as_deref(), found);
    let ports = match (raw.port, raw.end_port) {
        (None, None) => PortMatch::Any,
        (None, Some(_)) => {
            found.push(format!("{place}: endPort without port"));
            return None;
        }
        (Some(IntOrString::String(name)), None) => PortMatch::Named(name),
        (Some(IntOrString::String(name)), Some(_)) => {
            found.push(format!("{place}: endPort with the named port {name:?}"));
            return None;
        }
        (Some(IntOrString::Int(port)), end) => {
            let first = port_number(port, found)?;
            let last = end.map_or(Some(first), |end| port_number(end, found))?;
            if last < first {
                found.push(format!("{place}: endPort {last} is below port {first}"));
                return None;
            }
            PortMatch::Range(first, last)
        }
    };
    Some(PolicyPort { protocol, ports })
}

fn selector(raw: RawSelector, place: &str, found: &mut Found) -> Selector {
    let labels = raw.match_labels.unwrap_or_default();
    let mut requirements: Vec<Requirement> = labels
        .into_iter()
        .map(|(key, value)| Requirement::In(key, vec![value]))
        .collect();
    for RawExpression {
        key,
        operator,
        values,
    } in raw.match_expressions.unwrap_or_default()
    {
        let wants_values = matches!(operator.as_str(), "In" | "NotIn");
        if wants_values == values.is_empty() {
            let rule = if wants_values {
                "needs values"
            } else {
                "takes no values"
            };
            found.push(format!(
                "{place}: matchExpressions {key:?}: {operator} {rule}"
            ));
        }
        match operator.as_str() {
            "In" => requirements.push(Requirement::In(key, values)),
            "NotIn" => requirements.push(Requirement::NotIn(key, values)),
            "Exists" => requirements.push(Requirement::Exists(key)),
            "DoesNotExist" => requirements.push(Requirement::DoesNotExist(key)),
            _ => found.push(format!(
                "{place}: matchExpressions {key:?}: {operator:?} is not one of In, NotIn, Exists, DoesNotExist"
            )),
        }
    }
    Selector { requirements }
}

/// Reads a label selector. `None`: it has a problem.
pub fn parse_selector(value: &Value) -> Option<Selector> {
    let mut found = Found::new();
    let selector = selector(read(value, &mut found)?, "", &mut found);
    found.is_empty().then_some(selector)
}

fn port_number(number: i64, found: &mut Found) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        found.push(format!("{number} is not a port"));
    }
    port
}

/// `None` for SCTP, which is legal but which the probes do not speak.
fn protocol(name: Option<&str>, found: &mut Found) -> Option<Protocol> {
    match name {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => None,
        Some(other) => {
            found.push(format!("protocol {other:?} is not one of TCP, UDP, SCTP"));
            None
        }
    }
}
