//! Stories of plain WireGuard configurations.

use std::{net::SocketAddr, time::Duration};

use model::{config::Config, endpoint::Endpoint, status::Hop, status::Tunnel};
use node::{Attachment, Event};

use crate::{
    reach::ping,
    world::{GATEWAY, Installation, World, endpoint, ip, netstack, prefix, public_key, secret},
};

fn config(host: u8, endpoint: &str) -> Config {
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}\nDNS = {}\nMTU = 1400\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}\nEndpoint = {endpoint}\n",
        secret(host).to_base64(),
        ip(host),
        prefix(host / 10).resolver(),
        public_key(GATEWAY),
        prefix(host / 10),
    );
    Config::parse(text.as_bytes()).expect("a well-formed file")
}

#[test]
fn a_plain_configuration_is_a_peer_like_any_other() {
    let mut world = World::standing(&Installation::new(), &[12]);
    world.add(11, netstack(11));
    let now = world.now;
    let config = config(11, &endpoint(GATEWAY).to_string());
    world.node(11).apply_config(now, &config);
    assert!(
        ping(&mut world, 11, 12),
        "the first packet begins the handshake"
    );
    assert!(ping(&mut world, 12, 11));
    let resolver = std::net::IpAddr::V6(prefix(1).resolver());
    assert_eq!(world.node(11).dns_servers(), [resolver]);
    assert_eq!(world.node(11).addresses(), [ip(11)]);
}

#[test]
fn the_name_of_an_endpoint_is_asked_for_and_again_when_nobody_answers() {
    let mut world = World::standing(&Installation::new(), &[12]);
    world.add(11, netstack(11));
    let now = world.now;
    world
        .node(11)
        .apply_config(now, &config(11, "vpn.example.com:51820"));
    let asked = |event: &Event| {
        if let Event::ResolveEndpoint { endpoint, .. } = event {
            Some(endpoint.clone())
        } else {
            None
        }
    };
    world.run(Duration::from_millis(1));
    let name: Endpoint = "vpn.example.com:51820".parse().expect("an endpoint");
    assert_eq!(world.take(11, asked), std::slice::from_ref(&name));
    let now = world.now;
    let status = world.node(11).status(now);
    assert_eq!(status.peers[0].tunnel, Tunnel::Unresolved);
    assert_eq!(status.problems[0].hop, Hop::Dns);

    // The first answer is stale: nobody lives there.
    world
        .node(11)
        .set_endpoint(now, &public_key(GATEWAY), endpoint(77));
    world.run(Duration::from_secs(120));
    let again = world.take(11, asked);
    assert_eq!(again.first(), Some(&name));
    let now = world.now;
    let gateway: SocketAddr = endpoint(GATEWAY);
    world
        .node(11)
        .set_endpoint(now, &public_key(GATEWAY), gateway);
    world.run(Duration::from_secs(1));
    assert!(ping(&mut world, 11, 12));

    // An idle tunnel without keepalives is no problem, whatever went before.
    world.run(Duration::from_secs(600));
    let now = world.now;
    let status = world.node(11).status(now);
    assert_eq!(status.peers[0].tunnel, Tunnel::Idle);
    assert_eq!(status.problems, []);
}

#[test]
fn a_packet_of_the_tun_interface_without_a_peer_is_answered_and_counted() {
    let mut world = World::new();
    world.add(11, Attachment::Tun);
    let now = world.now;
    world
        .node(11)
        .apply_config(now, &config(11, &endpoint(GATEWAY).to_string()));
    let lost = crate::world::raw(ip(11), ip(22), packet::ip::UDP, &[0; 16]);
    world.send_packet(11, &lost);
    let [answer] = &world.hosts[&11].packets[..] else {
        panic!("one answer");
    };
    let answer = packet::ip::parse(answer).expect("an IP packet");
    assert_eq!(answer.header.destination, ip(11));
    assert_eq!(answer.header.next_header, packet::ip::ICMPV6);
    assert_eq!(world.node(11).counters().total(), 1);
}
