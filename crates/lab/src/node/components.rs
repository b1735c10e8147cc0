//! The programs of a node and their configuration files, as pure functions of the lab.

use std::path::Path;

use serde_json::json;

use crate::spec::{API_PORT, DNS_SERVICE, Lab, Node, Role};

/// A long-running program of a node. All paths are as the node sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name in `lab logs`.
    pub name: &'static str,
    /// The program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// When it may start.
    pub after: After,
}

/// When a component may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// At once; it waits by itself for what it needs.
    Nothing,
    /// When the API server answers: started earlier it would back off and lose seconds.
    ApiServer,
}

/// A file that a component reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its name in the node's folder.
    pub name: &'static str,
    /// Its text.
    pub text: String,
}

/// The network that pods get until a CNI is installed. Its own range, so that
/// it never overlaps with the pod addresses that Kubernetes hands out.
pub const START_NETWORK: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "lab-start",
  "plugins": [{
    "type": "bridge",
    "bridge": "lab0",
    "isGateway": true,
    "ipMasq": false,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}
"#;

/// The node's folder as the node sees it.
fn node_folder(lab: &Lab, node: &Node) -> String {
    lab.inside(&lab.node_folder(&node.name))
        .display()
        .to_string()
}

fn program(lab: &Lab, folder: &Path, name: &str) -> String {
    lab.inside(&folder.join(name)).display().to_string()
}

/// Everything that runs on `node`, in starting order.
pub fn components(lab: &Lab, node: &Node) -> Vec<Component> {
    let own = node_folder(lab, node);
    let keys = lab.inside(&lab.folder().join("pki")).display().to_string();
    let kubernetes = &lab.parts.kubernetes;
    let containerd = Component {
        name: "containerd",
        program: program(lab, &lab.parts.containerd, "containerd"),
        args: vec!["--config".to_owned(), format!("{own}/containerd.toml")],
        after: After::Nothing,
    };
    let kubelet = Component {
        name: "kubelet",
        program: program(lab, kubernetes, "kubelet"),
        args: flags(&[
            ("config", format!("{own}/kubelet.json")),
            (
                "kubeconfig",
                format!("{keys}/kubelet-{}.kubeconfig", node.name),
            ),
            ("cert-dir", keys.clone()),
            ("hostname-override", node.name.clone()),
            ("node-ip", node.address.to_string()),
            ("root-dir", "/var/lib/kubelet".to_owned()),
        ]),
        after: After::ApiServer,
    };
    if node.role == Role::Worker {
        return vec![containerd, kubelet];
    }
    let etcd = Component {
        name: "etcd",
        program: program(lab, &lab.parts.etcd, "etcd"),
        args: vec![
            format!("--data-dir={own}/etcd"),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            // A lab need not survive a loss of power.
            "--unsafe-no-fsync".to_owned(),
        ],
        after: After::Nothing,
    };
    let api_server = Component {
        name: "kube-apiserver",
        program: program(lab, kubernetes, "kube-apiserver"),
        args: api_server_flags(node, &keys),
        after: After::Nothing,
    };
    let controllers = Component {
        name: "kube-controller-manager",
        program: program(lab, kubernetes, "kube-controller-manager"),
        args: flags(&[
            (
                "kubeconfig",
                format!("{keys}/controller-manager.kubeconfig"),
            ),
            ("allocate-node-cidrs", "true".to_owned()),
            ("cluster-cidr", "10.244.0.0/16".to_owned()),
            ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("root-ca-file", format!("{keys}/ca.crt")),
            ("service-account-private-key-file", format!("{keys}/sa.key")),
            ("cluster-signing-cert-file", format!("{keys}/ca.crt")),
            ("cluster-signing-key-file", format!("{keys}/ca.key")),
            ("use-service-account-credentials", "true".to_owned()),
            // Each controller makes an account and a token of its own when it starts:
            // at the default of 20 requests a second that alone takes 4.5 s.
            ("kube-api-qps", "500".to_owned()),
            ("kube-api-burst", "1000".to_owned()),
            ("leader-elect", "false".to_owned()),
        ]),
        after: After::ApiServer,
    };
    let scheduler = Component {
        name: "kube-scheduler",
        program: program(lab, kubernetes, "kube-scheduler"),
        args: flags(&[
            ("kubeconfig", format!("{keys}/scheduler.kubeconfig")),
            ("leader-elect", "false".to_owned()),
        ]),
        after: After::ApiServer,
    };
    let dns = Component {
        name: "coredns",
        program: program(lab, &lab.parts.coredns, "coredns"),
        args: vec!["-conf".to_owned(), format!("{own}/Corefile")],
        after: After::ApiServer,
    };
    vec![
        etcd,
        api_server,
        containerd,
        controllers,
        scheduler,
        kubelet,
        dns,
    ]
}

fn api_server_flags(node: &Node, keys: &str) -> Vec<String> {
    flags(&[
        ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
        ("tls-cert-file", format!("{keys}/apiserver.crt")),
        ("tls-private-key-file", format!("{keys}/apiserver.key")),
        ("client-ca-file", format!("{keys}/ca.crt")),
        ("kubelet-certificate-authority", format!("{keys}/ca.crt")),
        (
            "kubelet-client-certificate",
            format!("{keys}/node-admin.crt"),
        ),
        ("kubelet-client-key", format!("{keys}/node-admin.key")),
        ("service-account-key-file", format!("{keys}/sa.pub")),
        ("service-account-signing-key-file", format!("{keys}/sa.key")),
        (
            "service-account-issuer",
            "https://kubernetes.default.svc.cluster.local".to_owned(),
        ),
        ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("enable-admission-plugins", "NodeRestriction".to_owned()),
        ("allow-privileged", "true".to_owned()),
        ("advertise-address", node.address.to_string()),
        ("secure-port", API_PORT.to_string()),
        // exec and logs must not depend on DNS.
        ("kubelet-preferred-address-types", "InternalIP".to_owned()),
    ])
}

fn flags(pairs: &[(&str, String)]) -> Vec<String> {
    pairs
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

/// The configuration files of `node`.
pub fn config_files(lab: &Lab, node: &Node) -> Vec<ConfigFile> {
    let mut files = vec![
        ConfigFile {
            name: "containerd.toml",
            text: containerd_config(lab, node),
        },
        ConfigFile {
            name: "kubelet.json",
            text: kubelet_config(lab, node),
        },
        ConfigFile {
            name: "resolv.conf",
            text: "nameserver 127.0.0.1\n".to_owned(),
        },
    ];
    if node.role == Role::ControlPlane {
        files.push(ConfigFile {
            name: "Corefile",
            text: corefile(lab, node),
        });
    }
    files
}

fn containerd_config(lab: &Lab, node: &Node) -> String {
    let own = node_folder(lab, node);
    let runc = program(lab, &lab.parts.containerd, "runc");
    format!(
        r#"version = 3
root = "{own}/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
disable_snapshot_annotations = true

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.k8s.io/pause:3.10"

[plugins."io.containerd.cri.v1.runtime"]
# Lowering a score needs CAP_SYS_RESOURCE, which a lab does without.
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet_config(lab: &Lab, node: &Node) -> String {
    let own = node_folder(lab, node);
    let keys = lab.inside(&lab.folder().join("pki")).display().to_string();
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "x509": {"clientCAFile": format!("{keys}/ca.crt")},
            "webhook": {"enabled": true},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{keys}/kubelet-{}.crt", node.name),
        "tlsPrivateKeyFile": format!("{keys}/kubelet-{}.key", node.name),
        "clusterDNS": [DNS_SERVICE.to_string()],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "failCgroupV1": false,
        "failSwapOn": false,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        // Without CAP_SYS_RESOURCE the kubelet can neither lower scores nor raise limits.
        "oomScoreAdj": 0,
        // Evented: learn from containerd that a container has ended, instead of looking once a second;
        // with six init containers in Cilium's pod that is five seconds.
        "featureGates": {"KubeletInUserNamespace": true, "EventedPLEG": true},
        "localStorageCapacityIsolation": false,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        "resolvConf": format!("{own}/resolv.conf"),
        "shutdownGracePeriod": "0s",
    });
    serde_json::to_string_pretty(&config).expect("a value of strings is JSON")
}

fn corefile(lab: &Lab, node: &Node) -> String {
    let keys = lab.inside(&lab.folder().join("pki")).display().to_string();
    // No forwarder: a lab has no way out, and a name outside must fail at once.
    format!(
        "\
.:53 {{
    bind {} {DNS_SERVICE}
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {keys}/coredns.kubeconfig holdfast
        ttl 5
    }}
}}
",
        node.address
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::lab;

    #[test]
    fn a_worker_runs_no_control_plane() {
        let lab = lab(2);
        let names: Vec<_> = components(&lab, &lab.nodes[1])
            .iter()
            .map(|component| component.name)
            .collect();
        assert_eq!(names, ["containerd", "kubelet"]);
    }

    #[test]
    fn no_path_of_the_machine_is_named_inside_a_node() {
        let lab = lab(2);
        for node in &lab.nodes {
            for component in components(&lab, node) {
                let line = format!("{} {}", component.program, component.args.join(" "));
                assert!(!line.contains("/cache/"), "{line}");
            }
            for file in config_files(&lab, node) {
                assert!(!file.text.contains("/cache/"), "{}", file.text);
            }
        }
    }

    #[test]
    fn no_component_is_given_a_secret_as_an_argument() {
        let lab = lab(1);
        for component in components(&lab, &lab.nodes[0]) {
            assert!(
                component
                    .args
                    .iter()
                    .all(|arg| !arg.contains("BEGIN") && !arg.contains("token")),
                "{component:?}"
            );
        }
    }

    #[test]
    fn the_start_network_is_json_and_leaves_the_pod_range_alone() {
        let network: serde_json::Value = serde_json::from_str(START_NETWORK).unwrap();
        assert!(!network.to_string().contains("10.244."));
    }
}
