//! Two offices with one prefix, which IPv4 programs reach by aliases: from a home whose LAN has
//! that prefix too, and from one office to the other.
//!
//! ```text
//!   neighbour ─── home ─── hub: server ─┬─ paris: node ─── device 192.168.1.10 = 10.99.1.10
//!   192.168.1.10                        └─ rome:  node ─── device 192.168.1.10 = 10.99.2.10
//! ```

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use super::{
    routed,
    site::{DEVICE, Scene, finish, serve, succeeded},
    world::{LONG, Space, text, within},
};

/// By which the machine of a node speaks to aliases.
const MACHINE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 6));

/// The offices, and what their devices are known as.
const KNOWN_AS: [(&str, [u8; 4]); 2] = [("paris", [10, 99, 1, 10]), ("rome", [10, 99, 2, 10])];

fn scene() -> Option<Scene> {
    let scene = Scene::new()?;
    // With one prefix either form says which it stands for.
    let aliases = ["10.99.1.0/24", "192.168.1.0/24=10.99.2.0/24"];
    for (alias, (name, _)) in aliases.into_iter().zip(KNOWN_AS) {
        let shown = scene.run(&["site", "set", name, "--alias", alias, "--json"]);
        assert!(shown.contains("192.168.1.0/24=10.99."), "{shown}");
    }
    for office in &scene.offices {
        serve(&office.device.0, (DEVICE, 80).into(), office.name);
    }
    serve(&scene.neighbour.0, (DEVICE, 80).into(), "home");
    Some(scene)
}

fn curl(space: &Space, arguments: &[&str]) -> String {
    let mut curl = space.command("curl");
    curl.args(["-sS", "-m", "20"]).args(arguments);
    text(&finish(curl))
}

/// Moves bytes there and back over TCP to a device that others know by another address.
fn transfer(from: &Space, to: &Space, own: IpAddr, known_as: IpAddr) {
    let listener = to.enter(|| TcpListener::bind((own, 0)).expect("its address"));
    let port = listener.local_addr().expect("it is bound").port();
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(LONG)).expect("a bound");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("all arrives");
        stream.write_all(&all).expect("all leaves");
    });
    let address = SocketAddr::from((known_as, port));
    let stream = from.enter(|| TcpStream::connect_timeout(&address, LONG));
    let mut stream = stream.expect("a connection");
    stream.set_read_timeout(Some(LONG)).expect("a bound");
    let sent: Vec<u8> = (0..500_000)
        .map(|n: usize| n.to_le_bytes()[n % 2])
        .collect();
    stream.write_all(&sent).expect("all leaves");
    stream.shutdown(std::net::Shutdown::Write).expect("an end");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("all comes back");
    assert!(received == sent, "{} bytes came back", received.len());
    echo.join().expect("the echo ends well");
}

/// Sends datagrams, the last one in fragments, of which as much comes back as one packet takes: a
/// stack beside an interface sends no fragments.
fn exchange(from: &Space, to: &Space, own: IpAddr, known_as: IpAddr) {
    let device = to.enter(|| UdpSocket::bind((own, 0)).expect("its address"));
    device.set_read_timeout(Some(LONG)).expect("a bound");
    let port = device.local_addr().expect("it is bound").port();
    let lengths = [1, 1000, 4000];
    let echo = thread::spawn(move || {
        for expected in lengths {
            let mut datagram = [0; 8192];
            let (length, peer) = device.recv_from(&mut datagram).expect("it arrives");
            assert_eq!(length, expected, "it is whole");
            let answer = &datagram[..length.min(1000)];
            device.send_to(answer, peer).expect("it leaves");
        }
    });
    let socket = datagrams(from, (known_as, port).into());
    for length in lengths {
        let sent = vec![7; length];
        socket.send(&sent).expect("it leaves");
        let mut datagram = [0; 8192];
        let length = socket.recv(&mut datagram).expect("it comes back");
        assert_eq!(&datagram[..length], &sent[..length.min(1000)]);
    }
    echo.join().expect("the echo ends well");
}

/// A socket that the kernel gives errors only about packets that it sent itself.
fn datagrams(space: &Space, to: SocketAddr) -> UdpSocket {
    space.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        socket.set_read_timeout(Some(LONG)).expect("a bound");
        socket.connect(to).expect("a route");
        socket
    })
}

/// Nobody has that port: the error names the packet as its sender knows it, or nobody were told.
fn is_refused(from: &Space, known_as: IpAddr) {
    let socket = datagrams(from, (known_as, 9).into());
    socket.send(b"nobody").expect("it leaves");
    let error = socket.recv(&mut [0; 16]).expect_err("nobody answers");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn ipv4_programs_reach_two_offices_with_one_prefix_and_the_home_lan_that_has_it_too() {
    let Some(mut scene) = scene() else {
        return;
    };
    let up = scene.start(scene.at_home(&["up", "--tun"]), "is ready");
    scene.running.push(up);
    let home = &scene.home.0;
    for ((name, known_as), office) in KNOWN_AS.into_iter().zip(&scene.offices) {
        let (address, device) = (IpAddr::from(known_as), &office.device.0);
        within(LONG, "the device answers", || home.ping(address, 1) == 1);
        let page = curl(home, &[&format!("http://{address}/")]);
        assert_eq!(page, format!("{name} sees 192.168.1.5"));
        transfer(home, device, DEVICE.into(), address);
        exchange(home, device, DEVICE.into(), address);
        is_refused(home, address);
        let nobody = home.enter(|| TcpStream::connect((address, 81)));
        let error = nobody.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        // The first hop has no IPv4 address, and tells about the packet as it was sent.
        let mut ping = home.command("ping");
        ping.args(["-n", "-c", "1", "-W", "5", "-t", "1", &address.to_string()]);
        let told = text(&finish(ping));
        assert!(told.contains("From 192.0.0.8"), "{told}");
        assert!(told.contains("Time to live exceeded"), "{told}");
        let socket = datagrams(home, (address, 80).into());
        assert_eq!(socket.local_addr().expect("it is bound").ip(), MACHINE);
        // The program's own commands go by IPv6.
        let ping = finish(scene.at_home(&["ping", &address.to_string(), "-c", "1"]));
        assert!(ping.status.success(), "{}", text(&ping));
        // The same device by its name is reached by IPv6, at the same time.
        let resolved = scene.run(&["resolve", &format!("192-168-1-10.{name}.site.internal")]);
        let by_name = resolved
            .split_whitespace()
            .find(|word| word.starts_with("fd"));
        let url = format!("http://[{}]/", by_name.expect("an address"));
        let page = curl(home, &["-g", &url]);
        assert_eq!(page, format!("{name} sees 192.168.1.5"));
    }
    let own = curl(home, &["http://192.168.1.10/"]);
    assert_eq!(own, "home sees 192.168.1.77");
    let routes = || {
        let mut ip = home.command("ip");
        ip.args(["-4", "route"]);
        succeeded(&finish(ip))
    };
    assert!(
        routes().contains("10.99.1.0/24 dev ginnel0"),
        "{}",
        routes()
    );
    scene.run(&["site", "set", "paris", "--no-alias"]);
    within(LONG, "the route goes", || {
        !routes().contains("10.99.1.0/24")
    });
    assert_eq!(home.ping(KNOWN_AS[1].1.into(), 1), 1, "the other one stays");
    // What the machine has a route for is left alone, and it is said what helps.
    scene.run(&["site", "set", "paris", "--alias", "10.97.9.0/24"]);
    within(LONG, "the conflict is told", || {
        let status = scene.run(&["status"]);
        let parts = [
            "10.97.9.0/24 of a site is routed elsewhere on this machine: 10.97.0.0/16",
            "ginnel site set SITE --alias PREFIX=ALIAS",
        ];
        parts.iter().all(|part| status.contains(part))
    });
}

#[test]
fn in_user_mode_an_address_in_an_alias_is_the_device_that_is_known_by_it() {
    let Some(mut scene) = scene() else {
        return;
    };
    let proxy = scene.at_home(&["proxy", "--socks5", "127.0.0.1:1080"]);
    let proxy = scene.start(proxy, "1080");
    scene.running.push(proxy);
    for (name, known_as) in KNOWN_AS {
        let address = IpAddr::from(known_as).to_string();
        within(LONG, "the device answers", || {
            let line = ["ping", &address, "-c", "1"];
            finish(scene.at_home(&line)).status.success()
        });
        let proxy = "socks5://127.0.0.1:1080";
        let page = curl(&scene.home.0, &["-x", proxy, &format!("http://{address}/")]);
        assert_eq!(page, format!("{name} sees 192.168.1.5"));
    }
}

#[test]
fn devices_of_two_routed_offices_with_one_prefix_see_each_others_alias() {
    let Some(scene) = routed::Scene::with_aliases() else {
        return;
    };
    let [one, other] = &scene.offices;
    for (from, to) in [(one, other), (other, one)] {
        let [from, to] = [from, to].map(|office| format!("site:{}", office.name));
        scene.run(&["policy", "add", "--from", &from, "--to", &to]);
    }
    for office in &scene.offices {
        let address = SocketAddr::new(office.address(), 80);
        serve(&office.device.0, address, office.name);
    }
    for (near, far) in [(one, other), (other, one)] {
        let (from, to) = (&near.device.0, &far.device.0);
        let known_as = far.device_known_as();
        within(LONG, "the far device answers", || {
            from.ping(known_as, 1) == 1
        });
        let page = routed::curl(from, known_as);
        let expected = format!("{} sees {}", far.name, near.device_known_as());
        assert_eq!(page, expected);
        transfer(from, to, far.address(), known_as);
        exchange(from, to, far.address(), known_as);
        is_refused(from, known_as);
    }
}
