//! Which addresses belong to nobody's inner network: what others name is fetched from those alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The host that answers virtual machines of Azure, and them alone, with their own configuration, on a public address.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Whether an address can be reached from everywhere, by the registries of special-purpose addresses (RFC 6890).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    // 100.64.0.0/10 is shared among a carrier's customers (RFC 6598) and the pods of some clouds.
    let is_shared = first == 100 && (64..128).contains(&second);
    // Protocols' own (some clouds' metadata among them), and relays of 6to4.
    let is_of_protocols = matches!((first, second, third), (192, 0, 0) | (192, 88, 99));
    let is_for_benchmarks = first == 198 && (second == 18 || second == 19);
    // Multicast begins at 224, what is reserved at 240.
    let is_ordinary = (1..224).contains(&first);
    is_ordinary
        && !(is_shared
            || is_of_protocols
            || is_for_benchmarks
            || address.is_loopback()
            || address.is_private()
            || address.is_link_local()
            || address.is_documentation()
            || address == AZURE)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inner) = embedded(address) {
        return is_public_v4(inner);
    }
    let [first, second, ..] = address.segments();
    // All that is given out is below 2000::/3; of it, 2001::/23 are protocols' own (tunnels among them), and two
    // networks stand in documents.
    let is_of_protocols = first == 0x2001 && second < 0x0200;
    let is_in_documents = (first, second) == (0x2001, 0x0db8) || first == 0x3fff && second < 0x1000;
    first & 0xe000 == 0x2000 && !is_of_protocols && !is_in_documents
}

/// The IPv4 address that an IPv6 address stands for: mapped (`::ffff:0:0/96`), behind NAT64 (`64:ff9b::/96`, RFC 6052)
/// or in 6to4 (`2002::/16`).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match [a, b, c, d, e, f] {
        [0x64, 0xff9b, 0, 0, 0, 0] => Some(join(high, low)),
        [0x2002, ..] => Some(join(b, c)),
        _ => address.to_ipv4_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_public_from_private_addresses() {
        for text in [
            "8.8.8.8",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "2001:200::1",
            "64:ff9b::808:808",
            "::ffff:8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "127.0.0.1",
            "127.255.255.254",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "192.88.99.1",
            "198.18.0.1",
            "203.0.113.7",
            "0.0.0.0",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::127.0.0.1",
            "fd00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }
}
