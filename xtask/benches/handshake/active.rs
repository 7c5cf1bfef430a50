//! Peers that send while very many others are configured: each sends echo requests to the address
//! of the interface, and the kernel answers them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use packet::{
    icmp::{self, Echo, Message},
    ip,
};
use wireguard::{Device, HEADER, OVERHEAD, Received, Seal, StaticSecret, padded};

use crate::{
    peers::{RESPONDER, device, inner, now, secret},
    print,
    usage::cpu,
};

/// The address of the interface, in one prefix with those of peers.
pub(crate) const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 1, 0, 0);

/// Peers with sessions at one program.
pub(crate) struct Active {
    socket: UdpSocket,
    to: SocketAddr,
    devices: Vec<(Device, IpAddr)>,
    /// By the index that datagrams for it have.
    places: HashMap<u32, usize>,
}

impl Active {
    /// Lets `count` peers shake hands; those that get no answer are left out.
    pub(crate) fn shake_hands(count: u32, port: u16) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a duration");
        let mut active = Self {
            socket,
            to: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            devices: Vec::new(),
            places: HashMap::new(),
        };
        (0..count).for_each(|number| active.begin(number));
        active
    }

    fn begin(&mut self, number: u32) {
        let mut device = device(now(), secret(number), u64::from(number) | 1 << 51);
        let key = StaticSecret::new(RESPONDER).public_key();
        let peer = device.add_peer(now(), key).expect("room for one peer");
        let all = wireguard::Prefix::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        device.allow(peer, all.expect("a prefix"));
        device.set_endpoint(peer, Some(self.to));
        device.initiate(now(), peer);
        self.send_all(&mut device);
        let mut buffer = [0; 2_048];
        let Ok(length) = self.socket.recv(&mut buffer) else {
            return;
        };
        let index = u32::from_le_bytes(buffer[8..12].try_into().expect("four bytes"));
        if let Received::Handled = device.handle_datagram(now(), self.to, &mut buffer[..length]) {
            self.send_all(&mut device);
            self.places.insert(index, self.devices.len());
            self.devices.push((device, inner(number).address()));
        }
    }

    fn send_all(&self, device: &mut Device) {
        while let Some(transmit) = device.poll_transmit() {
            let sent = self.socket.send_to(&transmit.datagram, self.to);
            sent.expect("loopback takes it");
        }
    }

    /// Lets all send in turn, [`ECHOES`] in all, and prints how many came back and what each cost
    /// the process.
    pub(crate) fn echo(&mut self, name: &str, among: &str, process: u32) {
        let count = self.devices.len();
        let before = cpu(process);
        let mut back = 0_u32;
        for group in 0..ECHOES / TOGETHER {
            for number in group * TOGETHER..(group + 1) * TOGETHER {
                self.send(number % count);
            }
            for _ in 0..TOGETHER {
                if !self.receive() {
                    break;
                }
                back += 1;
            }
        }
        let used = (cpu(process) - before).as_secs_f64() * 1e6;
        let sent = u32::try_from(ECHOES).expect("few");
        let share = f64::from(back) * 100.0 / f64::from(sent);
        let case = format!("{count} active peers among {among}");
        print(name, &format!("{case}: echoes that came back"), share, "%");
        print(
            name,
            &format!("{case}: CPU of an echo"),
            used / f64::from(back.max(1)),
            "µs",
        );
    }

    fn send(&mut self, place: usize) {
        let (device, from) = &mut self.devices[place];
        let echo = Echo {
            identifier: 7,
            sequence: 1,
            payload: &[7; DATA],
        };
        let message = Message::EchoRequest(echo);
        let header = ip::Header {
            source: *from,
            destination: ADDRESS.into(),
            next_header: ip::ICMPV6,
            hop_limit: 64,
            traffic_class: 0,
            fragment: None,
        };
        let mut slot = [0; OVERHEAD + padded(40 + 8 + DATA)];
        let at = ip::emit_header(&header, 8 + DATA, &mut slot[HEADER..]);
        icmp::emit(*from, ADDRESS.into(), &message, &mut slot[HEADER + at..]);
        if let Seal::Sealed { length, .. } = device.seal(now(), &mut slot, at + 8 + DATA) {
            let sent = self.socket.send_to(&slot[..length], self.to);
            sent.expect("loopback takes it");
        }
    }

    fn receive(&mut self) -> bool {
        let mut buffer = [0; 2_048];
        let Ok(length) = self.socket.recv(&mut buffer) else {
            return false;
        };
        let index = u32::from_le_bytes(buffer[4..8].try_into().expect("four bytes"));
        let Some(place) = self.places.get(&index) else {
            return false;
        };
        let (device, _) = &mut self.devices[*place];
        let received = device.handle_datagram(now(), self.to, &mut buffer[..length]);
        matches!(received, Received::Packet { .. })
    }
}

/// Echo requests of one measurement, and how many are on their way at once.
const ECHOES: usize = 20_000;
const TOGETHER: usize = 50;
/// Bytes of an echo request.
const DATA: usize = 56;
const PATIENCE: Duration = Duration::from_millis(50);
