//! For whom a request or a connection counts where there are limits for one address.

use crate::config::AddressRange;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// Somebody with this address; of IPv6 the network that one household has.
    One(IpAddr),
    /// This machine, or a proxy that does not say for whom: it may stand for anybody, so only the limits for all hold.
    Anybody,
}

/// The proxies that are believed.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies(Arc<[AddressRange]>);

impl Proxies {
    pub(super) fn new(networks: &[AddressRange]) -> Proxies {
        Proxies(networks.into())
    }

    fn believes(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Whose connection it is, before a request was read.
    pub(super) fn asker_of_connection(&self, peer: IpAddr) -> Asker {
        let peer = peer.to_canonical();
        match self.believes(peer) {
            true => Asker::Anybody,
            false => Asker::of(peer),
        }
    }

    /// Each proxy appends whom it heard from, so the last address that is no proxy of ours is the client's: what stands
    /// before it is the client's own claim.
    fn asker_of_request(&self, peer: IpAddr, headers: &HeaderMap) -> Asker {
        let peer = peer.to_canonical();
        if !self.believes(peer) {
            return Asker::of(peer);
        }
        let lines: Vec<&str> = headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .collect();
        let claimed = lines.iter().flat_map(|line| line.split(',')).rev();
        for claim in claimed {
            match parsed(claim.trim()) {
                Some(address) if self.believes(address) => {}
                Some(address) => return Asker::of(address),
                None => return Asker::Anybody,
            }
        }
        Asker::Anybody
    }
}

/// An address, with or without a port.
fn parsed(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>();
    let address = address.or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|address| address.to_canonical())
}

impl Asker {
    fn of(address: IpAddr) -> Asker {
        /// Providers give a customer this much of an address, or more.
        const NETWORK_BITS: u32 = 64;
        match address {
            IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(Ipv6Addr::LOCALHOST) => Asker::Anybody,
            IpAddr::V4(_) => Asker::One(address),
            IpAddr::V6(address) => {
                let network = address.to_bits() >> NETWORK_BITS << NETWORK_BITS;
                Asker::One(Ipv6Addr::from_bits(network).into())
            }
        }
    }
}

/// Finds out whose request it is, for all that follows.
pub(super) async fn find_asker(
    State(proxies): State<Proxies>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let asker = peer.map_or(Asker::Anybody, |ConnectInfo(peer)| {
        proxies.asker_of_request(peer.ip(), request.headers())
    });
    request.extensions_mut().insert(asker);
    next.run(request).await
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let found = parts.extensions.get::<Asker>().copied();
        Ok(found.unwrap_or(Asker::Anybody))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(trusted: &[&str], peer: &str, lines: &[&'static str]) -> Asker {
        let networks: Vec<AddressRange> = trusted
            .iter()
            .map(|text| AddressRange::try_from((*text).to_owned()).unwrap())
            .collect();
        let headers = lines
            .iter()
            .map(|line| (FORWARDED_FOR.parse().unwrap(), line.parse().unwrap()))
            .collect();
        Proxies::new(&networks).asker_of_request(peer.parse().unwrap(), &headers)
    }

    fn one(address: &str) -> Asker {
        Asker::One(address.parse().unwrap())
    }

    #[test]
    fn only_a_trusted_proxy_says_for_whom_it_asks() {
        let here = "127.0.0.1";
        let claim = ["203.0.113.9"];
        assert_eq!(asker(&[], "198.51.100.1", &claim), one("198.51.100.1"));
        assert_eq!(asker(&[], here, &claim), Asker::Anybody);
        assert_eq!(asker(&[here], here, &claim), one("203.0.113.9"));
        assert_eq!(asker(&[here], here, &[]), Asker::Anybody);
        assert_eq!(asker(&[here], here, &["nonsense"]), Asker::Anybody);
        assert_eq!(
            asker(&[here], here, &["203.0.113.9:4711"]),
            one("203.0.113.9")
        );
    }

    #[test]
    fn what_a_client_claims_before_the_proxies_is_not_believed() {
        let chain = ["127.0.0.1", "10.0.0.0/8"];
        let lines = ["1.1.1.1, 203.0.113.9", "10.2.3.4"];
        assert_eq!(asker(&chain, "127.0.0.1", &lines), one("203.0.113.9"));
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        assert_eq!(
            asker(&[], "2001:db8:1:2:3:4:5:6", &[]),
            one("2001:db8:1:2::")
        );
        assert_eq!(asker(&[], "::ffff:198.51.100.1", &[]), one("198.51.100.1"));
        assert_eq!(asker(&[], "::1", &[]), Asker::Anybody);
    }
}
