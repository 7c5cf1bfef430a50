//! What is said of a site behind this node: its mode, why, what is lost by it and what would lift
//! that.

use model::{
    site::Mode,
    status::{ReturnPath, Site, SiteNode},
};

/// Tells how it stands with a site.
pub(super) fn text(site: &Site) -> String {
    let mut lines = vec![format!("{}: {}", site.name, summary(site))];
    if let Some(lost) = lost(site) {
        lines.push(format!("lost: {lost}"));
    }
    lines.extend(remedy(site).map(|remedy| format!("what lifts it: {remedy}")));
    let nodes = site.nodes.iter();
    lines.extend(nodes.map(|node| format!("node {}", node_text(node))));
    lines.join("\n  ")
}

/// Tells how it stands with one of several nodes of a site.
pub(crate) fn node_text(node: &SiteNode) -> String {
    let carries = if node.carries { ", carries it" } else { "" };
    format!("{}: {}{carries}", node.name, node.health.in_words())
}

/// Tells in one line in which mode it is, and why.
pub(crate) fn summary(site: &Site) -> String {
    let chosen = match site.mode {
        Mode::Auto => " (auto)",
        Mode::Masquerade | Mode::Routed => "",
    };
    format!("{}{chosen}, {}", site.in_force, reason(site.return_path))
}

fn reason(found: ReturnPath) -> &'static str {
    match found {
        ReturnPath::Undecided => "the way back is being tried out",
        ReturnPath::NotWanted => "as was chosen",
        ReturnPath::NoInterface => "because this node has no interface",
        ReturnPath::NoAddress => "because this machine has no address in its prefixes",
        ReturnPath::NoOtherSite => "no other site's addresses are routed to here",
        ReturnPath::NotForwarding => "because this machine does not forward what devices send",
        ReturnPath::NoWitness => {
            "no device of the LAN has answered this machine by TCP lately, so the way back could \
             not be tried out"
        }
        ReturnPath::Missing => {
            "what devices answer to another site does not come back: they and the LAN's router \
             have no route to it"
        }
        ReturnPath::Triangle => {
            "what devices answer to another site is lost although the LAN's router has the route: \
             only one direction passes it, and it drops what belongs to no connection that it knows"
        }
        ReturnPath::Present => "what devices answer to another site comes back",
    }
}

/// Says what does not work; `None` when everything does that can.
pub(crate) fn lost(site: &Site) -> Option<&'static str> {
    match (site.return_path, site.in_force) {
        (ReturnPath::Missing | ReturnPath::NotForwarding, Mode::Routed) => {
            Some("devices there and in other sites do not reach each other")
        }
        (ReturnPath::Triangle, Mode::Routed) => {
            Some("connections between devices there and in other sites are not established")
        }
        (ReturnPath::Triangle, Mode::Masquerade | Mode::Auto) => Some(
            "devices there see this node's address, and connections that they open to other sites \
             are not established unless the router redirects them",
        ),
        (
            ReturnPath::Missing | ReturnPath::NotForwarding | ReturnPath::NoInterface,
            Mode::Masquerade | Mode::Auto,
        ) => Some(
            "devices there see this node's address, and open no connections to other sites \
             themselves",
        ),
        (ReturnPath::NoWitness | ReturnPath::NoAddress, Mode::Masquerade | Mode::Auto) => {
            Some("devices there see this node's address")
        }
        (
            ReturnPath::Undecided
            | ReturnPath::NotWanted
            | ReturnPath::NoOtherSite
            | ReturnPath::Present,
            Mode::Routed | Mode::Masquerade | Mode::Auto,
        )
        | (ReturnPath::NoWitness, Mode::Routed)
        | (ReturnPath::NoAddress | ReturnPath::NoInterface, Mode::Routed) => None,
    }
}

/// Says what to do about it.
pub(crate) fn remedy(site: &Site) -> Option<String> {
    let routes = || {
        let routes = site.routes.iter();
        let routes = routes.map(|it| format!("ip route add {} via {}", it.destination, it.router));
        routes.collect::<Vec<_>>().join("; ")
    };
    let option = || {
        let option = site.dhcp_option_121.as_ref();
        option.map_or_else(String::new, |option| {
            format!("the DHCP option 121 with the data 0x{option} for the devices")
        })
    };
    match site.return_path {
        ReturnPath::Missing => {
            let option = option();
            let or = if option.is_empty() { "" } else { ", or " };
            Some(format!("on the LAN's router: {}{or}{option}", routes()))
        }
        ReturnPath::Triangle => Some(format!(
            "{}, or the same routes on each ({}), so that they need not go by the router; or let \
             the router forward between them and this machine without connection tracking",
            option(),
            routes()
        )),
        ReturnPath::NotForwarding => Some("sysctl -w net.ipv4.ip_forward=1".to_owned()),
        ReturnPath::NoInterface => Some("`ginnel up --tun`, as root".to_owned()),
        ReturnPath::NoAddress => Some("run the node in the LAN of the site".to_owned()),
        ReturnPath::NoWitness => Some(
            "let this machine reach a device, and its firewall refuse instead of drop".to_owned(),
        ),
        ReturnPath::Undecided
        | ReturnPath::NotWanted
        | ReturnPath::NoOtherSite
        | ReturnPath::Present => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{site::Health, status::StaticRoute};

    #[test]
    fn a_missing_route_is_told_with_the_lines_that_lift_it() {
        let site = Site {
            name: "beijing".parse().unwrap(),
            mode: Mode::Auto,
            in_force: Mode::Masquerade,
            return_path: ReturnPath::Missing,
            routes: vec![StaticRoute {
                destination: "192.168.201.0/24".parse().unwrap(),
                router: [192, 168, 200, 2].into(),
            }],
            dhcp_option_121: Some("18c0a8c9c0a8c802".to_owned()),
            nodes: Vec::new(),
        };
        let said = text(&site);
        for part in [
            "beijing: masquerade (auto), what devices answer",
            "lost: devices there see this node's address",
            "on the LAN's router: ip route add 192.168.201.0/24 via 192.168.200.2",
            "or the DHCP option 121 with the data 0x18c0a8c9c0a8c802",
        ] {
            assert!(said.contains(part), "{said}");
        }
        let healthy = Site {
            in_force: Mode::Routed,
            return_path: ReturnPath::Present,
            ..site
        };
        assert_eq!(text(&healthy).lines().count(), 1);
        let nodes = [("c", false, Health::Silent), ("c2", true, Health::Healthy)];
        let nodes = nodes.map(|(name, carries, health)| SiteNode {
            name: name.parse().unwrap(),
            carries,
            health,
        });
        let several = Site {
            nodes: nodes.to_vec(),
            ..healthy
        };
        let said = text(&several);
        let lines: Vec<_> = said.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "  node c: does not answer the gateway",
                "  node c2: healthy, carries it"
            ]
        );
    }
}
