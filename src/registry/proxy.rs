//! Which proxy leads to an address, by the rules that Go's programs (Docker, podman, containerd) follow.

use std::net::IpAddr;

use super::endpoint::is_loopback;

/// What `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For addresses with TLS.
    pub https: Option<String>,
    /// For those without.
    pub http: Option<String>,
    /// Names, domains, addresses and networks to which no proxy leads, separated by commas.
    pub none: String,
}

impl Proxies {
    /// Of this process's environment, in upper case or else in lower.
    #[must_use]
    pub fn from_env() -> Self {
        let value = |name: &str| {
            let value = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase()));
            value.ok().filter(|value| !value.is_empty())
        };
        Self { https: value("HTTPS_PROXY"), http: value("HTTP_PROXY"), none: value("NO_PROXY").unwrap_or_default() }
    }

    /// The proxy's URL for a host (an IPv6 address without brackets) and port.
    pub(super) fn of(&self, tls: bool, host: &str, port: u16) -> Option<&str> {
        let proxy = if tls { &self.https } else { &self.http };
        proxy.as_deref().filter(|_| !is_loopback(host) && !self.excludes(host, port))
    }

    fn excludes(&self, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        self.none.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
            let (entry, of_port) = with_port(&entry);
            if entry.is_empty() || of_port.is_some_and(|of| of != port) {
                return false;
            }
            match (entry, address) {
                ("*", _) => true,
                (entry, Some(address)) => in_network(entry, address),
                (entry, None) => {
                    let domain = entry.strip_prefix('*').unwrap_or(entry);
                    match domain.strip_prefix('.') {
                        Some(domain) => host.strip_suffix(domain).is_some_and(|front| front.ends_with('.')),
                        None => host == domain || host.strip_suffix(domain).is_some_and(|f| f.ends_with('.')),
                    }
                }
            }
        })
    }
}

/// `host:port`, `[v6]:port`, `[v6]`; whatever else has colons is an IPv6 address.
fn with_port(entry: &str) -> (&str, Option<u16>) {
    if let Some((host, rest)) = entry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match entry.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port.parse().ok()),
        _ => (entry, None),
    }
}

/// Whether an address is `entry`, or in the network `entry` (`10.0.0.0/8`).
fn in_network(entry: &str, address: IpAddr) -> bool {
    let Some((network, bits)) = entry.split_once('/') else { return entry.parse() == Ok(address) };
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let wide = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((network, width), (address, of)) = (wide(network), wide(address));
    width == of && bits <= width && (bits == 0 || (network ^ address) >> (128 - bits) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        let proxies = |none: &str| Proxies { https: Some("http://p:1".into()), http: None, none: none.into() };
        for (none, host, port, direct) in [
            ("", "ghcr.io", 443, false),
            ("*", "ghcr.io", 443, true),
            ("ghcr.io", "ghcr.io", 443, true),
            ("GHCR.io", "ghcr.IO", 443, true),
            ("ghcr.io", "a.ghcr.io", 443, true),
            (".ghcr.io", "ghcr.io", 443, false),
            (".ghcr.io", "a.ghcr.io", 443, true),
            ("*.ghcr.io", "a.ghcr.io", 443, true),
            ("hcr.io", "ghcr.io", 443, false),
            ("x, ghcr.io:5000", "ghcr.io", 5000, true),
            ("ghcr.io:5000", "ghcr.io", 443, false),
            ("10.0.0.0/8", "10.2.3.4", 443, true),
            ("10.0.0.0/8", "11.2.3.4", 443, false),
            ("10.0.0.0/33", "10.0.0.0", 443, false),
            ("0.0.0.0/0", "11.2.3.4", 443, true),
            ("10.2.3.4", "10.2.3.4", 443, true),
            ("10.2.3.4:80", "10.2.3.4", 443, false),
            ("fd00::/8", "fd12::1", 443, true),
            ("fd12::1", "fd12::1", 443, true),
            ("[fd12::1]:80", "fd12::1", 80, true),
            ("10.0.0.0/8", "fd12::1", 443, false),
            // No proxy knows our loopback.
            ("", "localhost", 443, true),
            ("", "127.1.2.3", 443, true),
            ("", "::1", 443, true),
        ] {
            assert_eq!(proxies(none).of(true, host, port).is_none(), direct, "{none:?} {host} {port}");
        }
        assert_eq!(proxies("").of(false, "ghcr.io", 80), None);
    }
}
