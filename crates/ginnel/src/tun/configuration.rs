//! Applies what the userspace API asks for to the device and its sockets.

use std::{net::SocketAddr, time::Instant};

use wireguard::{AddPeerError, Device, PeerId, StaticSecret};

use super::uapi::{AllowedIp, Endpoint, Errno, PeerSettings, Settings};

/// What of the machine a configuration changes.
pub(crate) trait Machine {
    /// Listens on `port` instead of the present one; zero chooses one.
    fn listen(&mut self, port: u16) -> Result<(), Errno>;

    /// Marks outgoing datagrams.
    fn mark(&mut self, fwmark: u32) -> Result<(), Errno>;

    /// Returns the index of a network interface.
    fn interface(&self, name: &str) -> Option<u32>;
}

/// Settings on their way into a device, in parts: whoever has the device between two of them need
/// not wait for all of a large configuration.
pub(crate) struct Changes {
    /// Until the interface's own are applied.
    interface: Option<Interface>,
    replace_peers: bool,
    /// The last peer that was looked at for removal.
    looked_at: Option<PeerId>,
    peers: std::vec::IntoIter<PeerSettings>,
}

struct Interface {
    private_key: Option<Option<Box<StaticSecret>>>,
    listen_port: Option<u16>,
    fwmark: Option<u32>,
}

impl Changes {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            interface: Some(Interface {
                private_key: settings.private_key,
                listen_port: settings.listen_port,
                fwmark: settings.fwmark,
            }),
            replace_peers: settings.replace_peers,
            looked_at: None,
            peers: settings.peers.into_iter(),
        }
    }

    /// Applies the next part in the order of the userspace API; false when that was the last. What
    /// stands before a failure stays.
    pub(crate) fn apply_part(
        &mut self,
        now: Instant,
        device: &mut Device,
        machine: &mut impl Machine,
    ) -> Result<bool, Errno> {
        if let Some(interface) = self.interface.take() {
            interface.apply(now, device, machine)?;
        }
        if self.replace_peers {
            let peers = device.peers_after(self.looked_at);
            let part: Vec<_> = peers.map(|peer| peer.id).take(PART).collect();
            for peer in &part {
                device.remove_peer(*peer);
            }
            self.looked_at = part.last().copied();
            self.replace_peers = self.looked_at.is_some();
            return Ok(true);
        }
        for peer in self.peers.by_ref().take(PART) {
            apply_peer(peer, now, device, machine)?;
        }
        Ok(self.peers.len() > 0)
    }
}

impl Interface {
    fn apply(
        self,
        now: Instant,
        device: &mut Device,
        machine: &mut impl Machine,
    ) -> Result<(), Errno> {
        if let Some(key) = self.private_key {
            // A copy, because the box erases only what was not moved out of it.
            device.set_private_key(now, key.as_deref().cloned());
        }
        if let Some(port) = self.listen_port {
            machine.listen(port)?;
        }
        if let Some(mark) = self.fwmark {
            machine.mark(mark)?;
        }
        Ok(())
    }
}

fn apply_peer(
    settings: PeerSettings,
    now: Instant,
    device: &mut Device,
    machine: &impl Machine,
) -> Result<(), Errno> {
    let present = device.peer(&settings.public_key);
    if settings.remove {
        if let Some(peer) = present {
            device.remove_peer(peer);
        }
        return Ok(());
    }
    let peer = match present {
        Some(peer) => peer,
        None if settings.update_only => return Ok(()),
        // Of low order too: the kernel takes such a peer and never sends to it.
        None => match device.add_peer_of_any_key(now, settings.public_key) {
            Ok(peer) | Err(AddPeerError::Exists(peer)) => peer,
            // Our own key among the peers is ignored, so that one file serves every machine.
            Err(AddPeerError::OwnKey) => return Ok(()),
            Err(AddPeerError::LowOrder) => return Err(Errno::INVALID),
            Err(AddPeerError::Full) => return Err(Errno::FULL),
        },
    };
    if let Some(key) = settings.preshared_key.as_deref() {
        device.set_preshared_key(peer, Some(key.clone()));
    }
    if let Some(endpoint) = &settings.endpoint {
        device.set_endpoint(peer, Some(locate(endpoint, machine)?));
    }
    if settings.replace_allowed_ips {
        device.clear_allowed_ips(peer);
    }
    for allowed_ip in settings.allowed_ips {
        apply_allowed_ip(device, peer, allowed_ip);
    }
    // Last, because it sends.
    if let Some(interval) = settings.persistent_keepalive {
        device.set_persistent_keepalive(now, peer, interval);
    }
    // Packets that had nowhere to go may have now.
    if device
        .status(peer)
        .is_some_and(|peer| peer.staged_packets > 0)
    {
        device.initiate(now, peer);
    }
    Ok(())
}

fn apply_allowed_ip(device: &mut Device, peer: PeerId, allowed_ip: AllowedIp) {
    match allowed_ip {
        AllowedIp::Add(prefix) => device.allow(peer, prefix),
        AllowedIp::Remove(prefix) => {
            device.disallow(peer, prefix);
        }
    }
}

fn locate(endpoint: &Endpoint, machine: &impl Machine) -> Result<SocketAddr, Errno> {
    let mut address = endpoint.address;
    if let (Some(zone), SocketAddr::V6(address)) = (&endpoint.zone, &mut address) {
        address.set_scope_id(machine.interface(zone).ok_or(Errno::INVALID)?);
    }
    Ok(address)
}

/// Peers that are changed in one go: within a millisecond.
const PART: usize = 256;

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use wireguard::PublicKey;

    use super::*;
    use crate::tun::uapi::{Request, parse};

    #[derive(Default)]
    struct Fake {
        port: u16,
        mark: u32,
    }

    impl Machine for Fake {
        fn listen(&mut self, port: u16) -> Result<(), Errno> {
            if port == 80 {
                return Err(Errno(-98));
            }
            self.port = port;
            Ok(())
        }

        fn mark(&mut self, fwmark: u32) -> Result<(), Errno> {
            self.mark = fwmark;
            Ok(())
        }

        fn interface(&self, name: &str) -> Option<u32> {
            (name == "eth0").then_some(3)
        }
    }

    fn device() -> (Device, Instant) {
        let now = os::clock::Clock::start().now();
        (
            Device::new(now, UNIX_EPOCH, Box::new(tunnel::OsRandom)),
            now,
        )
    }

    #[track_caller]
    fn set(device: &mut Device, now: Instant, machine: &mut Fake, lines: &str) -> Errno {
        let request = parse(format!("set=1\n{lines}\n").as_bytes());
        let Ok(Some(Request::Set(settings))) = request else {
            panic!("{lines}: {request:?}")
        };
        let mut changes = Changes::new(*settings);
        loop {
            match changes.apply_part(now, device, machine) {
                Ok(true) => {}
                Ok(false) => return Errno::NONE,
                Err(errno) => return errno,
            }
        }
    }

    fn prefixes(device: &Device, key: [u8; 32]) -> Vec<String> {
        let peer = device.peer(&PublicKey(key)).unwrap();
        let allowed = device.status(peer).unwrap().allowed_ips;
        let texts = allowed
            .iter()
            .map(|p| format!("{}/{}", p.address(), p.bits()));
        texts.collect()
    }

    #[test]
    fn a_peer_is_made_changed_and_removed_and_update_only_never_makes_one() {
        let (mut device, now) = device();
        let machine = &mut Fake::default();
        let key = "09".repeat(32);
        let line = format!("public_key={key}\nupdate_only=true\n");
        assert_eq!(set(&mut device, now, machine, &line), Errno::NONE);
        assert_eq!(device.peer_count(), 0);
        let line = format!("public_key={key}\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/8\n");
        assert_eq!(set(&mut device, now, machine, &line), Errno::NONE);
        assert_eq!(prefixes(&device, [9; 32]), ["10.0.0.0/8", "fd00::/8"]);
        let line = format!("public_key={key}\nallowed_ip=-10.0.0.0/8\n");
        set(&mut device, now, machine, &line);
        assert_eq!(prefixes(&device, [9; 32]), ["fd00::/8"]);
        let line = format!(
            "public_key={key}\nreplace_allowed_ips=true\nallowed_ip=10.1.0.0/16\n\
             endpoint=[fe80::5%eth0]:9\n"
        );
        set(&mut device, now, machine, &line);
        assert_eq!(prefixes(&device, [9; 32]), ["10.1.0.0/16"]);
        let peer = device.peer(&PublicKey([9; 32])).unwrap();
        let endpoint = device.status(peer).unwrap().endpoint.unwrap();
        assert_eq!(endpoint.to_string(), "[fe80::5%3]:9");
        set(
            &mut device,
            now,
            machine,
            &format!("public_key={key}\nremove=true\n"),
        );
        assert_eq!(device.peer_count(), 0);
    }

    #[test]
    fn our_own_key_among_the_peers_is_ignored_and_a_weak_one_taken_as_the_kernel_does() {
        let (mut device, now) = device();
        let machine = &mut Fake::default();
        set(
            &mut device,
            now,
            machine,
            &format!("private_key={}\n", "07".repeat(32)),
        );
        let own: String = device
            .public_key()
            .unwrap()
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let line = format!("public_key={own}\n");
        assert_eq!(set(&mut device, now, machine, &line), Errno::NONE);
        let weak = format!("public_key={}\n", "00".repeat(32));
        assert_eq!(set(&mut device, now, machine, &weak), Errno::NONE);
        assert_eq!(device.peer_count(), 1);
    }

    #[test]
    fn a_port_in_use_is_told_and_what_stood_before_it_stays() {
        let (mut device, now) = device();
        let machine = &mut Fake::default();
        let lines = format!(
            "private_key={}\nlisten_port=80\nfwmark=5\n",
            "07".repeat(32)
        );
        assert_eq!(set(&mut device, now, machine, &lines), Errno(-98));
        assert!(device.public_key().is_some());
        assert_eq!(machine.mark, 0);
    }

    #[test]
    fn replace_peers_leaves_only_the_named_ones() {
        let (mut device, now) = device();
        let machine = &mut Fake::default();
        // More than are changed in one go.
        let lines: String = (0..600)
            .map(|n| format!("public_key={n:04x}{}\n", "05".repeat(30)))
            .collect();
        set(&mut device, now, machine, &lines);
        assert_eq!(device.peer_count(), 600);
        let line = format!("replace_peers=true\npublic_key={}\n", "09".repeat(32));
        set(&mut device, now, machine, &line);
        assert_eq!(device.peer_count(), 1);
        assert!(device.peer(&PublicKey([9; 32])).is_some());
    }
}
