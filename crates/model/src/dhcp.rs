//! DHCP's option for static routes (RFC 3442), which tells hosts of a LAN themselves where another
//! network is.

use std::net::Ipv4Addr;

use crate::site::Ipv4Prefix;

/// The code of the option (RFC 3442, Classless Route Option Format).
pub const CLASSLESS_STATIC_ROUTES: u8 = 121;

/// The longest data of an option (RFC 2132, 2).
const OPTION_MAX: usize = 255;

/// Writes the data of the option: `routes`, each by its router, and the default route by
/// `default_router`. A client that takes the option takes no default route from elsewhere
/// (RFC 3442, DHCP Client Behavior), so that one belongs into it. `None` when it is too long for
/// one option.
#[must_use]
pub fn classless_static_routes(
    routes: &[(Ipv4Prefix, Ipv4Addr)],
    default_router: Option<Ipv4Addr>,
) -> Option<Vec<u8>> {
    let mut option = Vec::new();
    for (destination, router) in routes {
        let bits = destination.length();
        let significant = usize::from(bits.div_ceil(8));
        option.push(bits);
        option.extend(&destination.address().octets()[..significant]);
        option.extend(router.octets());
    }
    if let Some(router) = default_router {
        option.push(0);
        option.extend(router.octets());
    }
    (option.len() <= OPTION_MAX).then_some(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    #[test]
    fn a_destination_is_written_as_in_the_examples_of_the_rfc() {
        // RFC 3442, Classless Route Option Format: subnet, mask, descriptor.
        for (destination, descriptor) in [
            ("10.0.0.0/8", &[8, 10][..]),
            ("10.0.0.0/24", &[24, 10, 0, 0]),
            ("10.17.0.0/16", &[16, 10, 17]),
            ("10.27.129.0/24", &[24, 10, 27, 129]),
            ("10.229.0.128/25", &[25, 10, 229, 0, 128]),
            ("10.198.122.47/32", &[32, 10, 198, 122, 47]),
        ] {
            let destination = destination.parse().expect("a prefix");
            let written = classless_static_routes(&[(destination, ROUTER)], None);
            let expected = [descriptor, &[192, 0, 2, 1]].concat();
            assert_eq!(written, Some(expected), "{destination}");
        }
        let written = classless_static_routes(&[], Some(ROUTER));
        assert_eq!(written, Some(vec![0, 192, 0, 2, 1]));
    }

    #[test]
    fn routes_stand_one_behind_the_other_as_many_as_one_option_holds() {
        let destination = "10.0.0.0/24".parse().expect("a prefix");
        let many = |count| classless_static_routes(&vec![(destination, ROUTER); count], None);
        assert_eq!(many(31).map(|option| option.len()), Some(31 * 8));
        assert_eq!(many(32), None);
    }
}
