//! Names to addresses, by the pod's own /etc/resolv.conf. The static C library cannot be asked.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

/// Resolves names afresh for every batch: a cached answer would prove nothing.
pub(crate) struct Resolver(Result<TokioResolver, String>);

impl Resolver {
    pub(crate) fn new() -> Resolver {
        Resolver(build().map_err(|error| format!("cannot read /etc/resolv.conf: {error}")))
    }

    pub(crate) async fn lookup(&self, name: &str) -> Result<IpAddr, String> {
        let resolver = self.0.as_ref().map_err(Clone::clone)?;
        let addresses = resolver
            .lookup_ip(name)
            .await
            .map_err(|error| error.to_string())?;
        addresses
            .iter()
            .next()
            .ok_or_else(|| "the answer has no address".to_owned())
    }
}

fn build() -> Result<TokioResolver, Box<dyn std::error::Error>> {
    let mut builder = TokioResolver::builder_tokio()?;
    let options = builder.options_mut();
    options.cache_size = 0;
    options.attempts = 2;
    options.timeout = Duration::from_secs(2);
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    Ok(builder.build()?)
}
