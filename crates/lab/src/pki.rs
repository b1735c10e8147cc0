//! The lab's certificate authority and the kubeconfigs that use it.

use std::path::Path;

use fs_err as fs;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::error::{Attempt as _, Error, Result};
use crate::files::write_private;
use crate::spec::Lab;

/// A certificate authority that lives as long as one lab.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// Who a certificate is for.
struct Subject<'a> {
    /// The Kubernetes user.
    user: &'a str,
    /// The Kubernetes group, if any.
    group: Option<&'a str>,
    /// Names and addresses under which it serves.
    names: Vec<String>,
}

/// Writes every key, certificate and kubeconfig of a lab into `folder`.
///
/// `outside` is where the API server is reached from the machine itself.
pub(crate) fn write_all(lab: &Lab, folder: &Path, outside: &str) -> Result<()> {
    fs::create_dir_all(folder).attempt(|| "make the key folder".to_owned())?;
    let authority = Authority::new()?;
    write_private(&folder.join("ca.crt"), &authority.certificate)?;
    write_private(
        &folder.join("ca.key"),
        &authority.issuer.key().serialize_pem(),
    )?;

    let accounts = KeyPair::generate().map_err(|source| Error::Certificate {
        name: "service accounts".to_owned(),
        source,
    })?;
    write_private(&folder.join("sa.key"), &accounts.serialize_pem())?;
    write_private(&folder.join("sa.pub"), &accounts.public_key_pem())?;

    let control = lab.control_plane().address;
    authority.issue(
        folder,
        "apiserver",
        &Subject {
            user: "kube-apiserver",
            group: None,
            names: [
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                "localhost",
                "127.0.0.1",
                "10.96.0.1",
            ]
            .into_iter()
            .map(str::to_owned)
            .chain([control.to_string()])
            .collect(),
        },
    )?;

    let inside = format!("https://{control}:{}", crate::spec::API_PORT);
    let users = [
        ("admin", "holdfast-admin", Some("system:masters"), outside),
        (
            "node-admin",
            "holdfast-lab",
            Some("system:masters"),
            inside.as_str(),
        ),
        (
            "controller-manager",
            "system:kube-controller-manager",
            None,
            inside.as_str(),
        ),
        ("scheduler", "system:kube-scheduler", None, inside.as_str()),
        ("coredns", "system:coredns", None, inside.as_str()),
    ];
    for (name, user, group, server) in users {
        let subject = Subject {
            user,
            group,
            names: Vec::new(),
        };
        let (certificate, key) = authority.issue(folder, name, &subject)?;
        authority.kubeconfig(folder, name, server, &certificate, &key)?;
    }
    for node in &lab.nodes {
        let name = format!("kubelet-{}", node.name);
        let subject = Subject {
            user: &format!("system:node:{}", node.name),
            group: Some("system:nodes"),
            names: vec![node.name.clone(), node.address.to_string()],
        };
        let (certificate, key) = authority.issue(folder, &name, &subject)?;
        authority.kubeconfig(folder, &name, &inside, &certificate, &key)?;
    }
    Ok(())
}

impl Authority {
    fn new() -> Result<Self> {
        let failed = |source| Error::Certificate {
            name: "the lab's authority".to_owned(),
            source,
        };
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "holdfast-lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    fn issue(&self, folder: &Path, name: &str, subject: &Subject<'_>) -> Result<(String, String)> {
        let failed = |source| Error::Certificate {
            name: name.to_owned(),
            source,
        };
        let mut params = CertificateParams::new(subject.names.clone()).map_err(failed)?;
        params
            .distinguished_name
            .push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        let key = key.serialize_pem();
        write_private(&folder.join(format!("{name}.crt")), &certificate)?;
        write_private(&folder.join(format!("{name}.key")), &key)?;
        Ok((certificate, key))
    }

    fn kubeconfig(
        &self,
        folder: &Path,
        name: &str,
        server: &str,
        certificate: &str,
        key: &str,
    ) -> Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "holdfast", "cluster": {
                "server": server,
                "certificate-authority-data": base64(self.certificate.as_bytes()),
            }}],
            "users": [{"name": name, "user": {
                "client-certificate-data": base64(certificate.as_bytes()),
                "client-key-data": base64(key.as_bytes()),
            }}],
            "contexts": [{"name": "holdfast", "context": {"cluster": "holdfast", "user": name}}],
            "current-context": "holdfast",
        });
        let text = serde_json::to_string_pretty(&config).expect("a value of strings is JSON");
        write_private(&folder.join(format!("{name}.kubeconfig")), &text)
    }
}

/// Standard base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let word = chunk.iter().enumerate().fold(0_u32, |word, (index, byte)| {
                word | u32::from(*byte) << (16 - 8 * index)
            });
            (0..4).map(move |digit| {
                if digit > chunk.len() {
                    '='
                } else {
                    char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize])
                }
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn base64_agrees_with_the_standard_vectors() {
        // RFC 4648, section 10.
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let lab = crate::spec::tests::lab(2);
        write_all(&lab, folder.path(), "https://127.0.0.1:1234").unwrap();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.path().display());
        }
        assert!(folder.path().join("kubelet-n2.kubeconfig").exists());
    }
}
