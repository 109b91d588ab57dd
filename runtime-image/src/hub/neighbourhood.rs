//! Where a public hub may send a fetch: never into the network that the fetch itself runs in.
//!
//! A redirect to `169.254.169.254` or to a Service of the cluster would let a hub read what only the pod may.
//! The address is checked where the connection is made, so a name that is resolved anew can't become another one in between;
//! a hub that is itself on such an address, as a mirror in the cluster is, may redirect to its neighbours.
//! Behind a proxy names are resolved by the proxy, and its rules hold.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::addresses::is_public;

/// What is known about the hub's own place, and which other hosts it named.
#[derive(Debug, Clone, Default)]
pub(super) struct Neighbourhood(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    hub: String,
    /// Absent until the hub's name was resolved here.
    hub_is_public: Option<bool>,
    redirected: HashSet<String>,
}

impl Neighbourhood {
    pub(super) fn of(hub: &Url) -> Self {
        let known = Known {
            hub: hub.host_str().unwrap_or_default().to_ascii_lowercase(),
            hub_is_public: literal(hub).map(is_public),
            redirected: HashSet::new(),
        };
        Self(Arc::new(Mutex::new(known)))
    }

    /// Notes that the hub redirects to this address; refuses one that is private by its very text.
    pub(super) fn redirects_to(&self, url: &Url) -> Result<(), &'static str> {
        let mut known = self.known();
        match literal(url) {
            Some(address) if known.hub_is_public != Some(false) && !is_public(address) => {
                // The hub behind a proxy is not known to be public, but nothing that serves models is on such an address.
                Err("a redirect to a private address")
            }
            Some(_) => Ok(()),
            None => {
                let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
                known.redirected.insert(host);
                Ok(())
            }
        }
    }

    /// Which of a name's addresses may be connected to.
    fn allow(&self, name: &str, addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
        let mut known = self.known();
        let name = name.to_ascii_lowercase();
        if name == known.hub {
            known.hub_is_public = Some(addresses.iter().all(|address| is_public(address.ip())));
            return Ok(addresses);
        }
        if known.hub_is_public != Some(true) || !known.redirected.contains(&name) {
            return Ok(addresses);
        }
        let allowed: Vec<SocketAddr> = addresses
            .into_iter()
            .filter(|address| is_public(address.ip()))
            .collect();
        if allowed.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the hub redirects to {name}, which is a private address"),
            ));
        }
        Ok(allowed)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolve for Neighbourhood {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            // The port is the caller's business.
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed = this.allow(name.as_str(), found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| SocketAddr::new(text.parse().unwrap(), 0))
            .collect()
    }

    #[test]
    fn a_public_hub_sends_nobody_to_a_private_address() {
        let hub = Neighbourhood::of(&url("https://hub.example"));
        for target in [
            "http://169.254.169.254/latest/meta-data",
            "http://127.0.0.1:6443",
            "http://[::1]/",
            "https://2130706433/",
        ] {
            assert!(hub.redirects_to(&url(target)).is_err(), "{target}");
        }
        hub.redirects_to(&url("https://cdn.example/x")).unwrap();
        // Before the hub's own place is known there is no redirect of it to follow.
        hub.allow("hub.example", addresses(&["8.8.8.8"])).unwrap();
        assert!(hub.allow("cdn.example", addresses(&["10.0.0.1"])).is_err());
        let mixed = addresses(&["10.0.0.1", "8.8.4.4"]);
        let allowed = hub.allow("CDN.example", mixed).unwrap();
        assert_eq!(allowed, addresses(&["8.8.4.4"]));
        // A proxy is no redirect.
        hub.allow("proxy.local", addresses(&["10.0.0.1"])).unwrap();
    }

    #[test]
    fn a_mirror_in_the_cluster_may_send_to_its_neighbours() {
        let hub = Neighbourhood::of(&url("http://10.0.0.5:8080"));
        hub.redirects_to(&url("http://10.0.0.6/x")).unwrap();
        let hub = Neighbourhood::of(&url("http://hub.ai.svc"));
        hub.redirects_to(&url("http://cdn.ai.svc/x")).unwrap();
        hub.allow("hub.ai.svc", addresses(&["10.0.0.5"])).unwrap();
        hub.allow("cdn.ai.svc", addresses(&["10.0.0.6"])).unwrap();
        hub.redirects_to(&url("http://10.0.0.7/x")).unwrap();
    }
}
