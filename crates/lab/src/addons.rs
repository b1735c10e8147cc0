//! The objects that every lab starts with: what CoreDNS may read, and the Service by which it is found.

use serde_json::{Value, json};

use crate::spec::{DNS_SERVICE, Lab};

/// All of them as one Kubernetes list.
///
/// CoreDNS is a program of the node, not a pod, so its Service has no selector
/// and its endpoints are written here.
pub(crate) fn manifest(lab: &Lab) -> String {
    let reads = |groups: &str, resources: &[&str]| json!({"apiGroups": [groups], "resources": resources, "verbs": ["list", "watch"]});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "system:coredns"},
        "rules": [
            reads("", &["endpoints", "services", "pods", "namespaces"]),
            reads("discovery.k8s.io", &["endpointslices"]),
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "system:coredns"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:coredns",
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "User",
            "name": "system:coredns",
        }],
    });
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")];
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "clusterIP": DNS_SERVICE.to_string(),
            "ports": ports.map(|(name, protocol)| json!({"name": name, "port": 53, "protocol": protocol})),
        },
    });
    let endpoints = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-lab",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [lab.control_plane().address.to_string()],
            "conditions": {"ready": true},
        }],
        "ports": ports.map(|(name, protocol)| json!({"name": name, "port": 53, "protocol": protocol})),
    });
    let list: Value = json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [role, binding, service, endpoints],
    });
    list.to_string()
}
