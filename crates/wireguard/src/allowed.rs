//! Allowed IPs: the cryptokey routing table, longest prefix first (whitepaper section 2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses; bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

/// The allowed IPs of all peers: a path-compressed binary trie for each family.
#[derive(Debug, Default)]
pub(crate) struct AllowedIps {
    v4: Trie,
    v6: Trie,
}

impl Prefix {
    /// Clears the bits behind the prefix; `None` when `bits` exceeds 32 or 128.
    #[must_use]
    pub fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let (key, width) = key(address);
        if bits > width {
            return None;
        }
        let key = key & mask(bits);
        let address = match address {
            IpAddr::V4(_) => {
                let high = u32::try_from(key >> 96).expect("96 bits shifted out of 128");
                IpAddr::V4(Ipv4Addr::from_bits(high))
            }
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(key)),
        };
        Some(Self { address, bits })
    }

    /// Returns the prefix that holds `address` alone.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        let (_, bits) = key(address);
        Self { address, bits }
    }

    /// Returns the first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the length of the prefix in bits.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Tells whether `address` lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && (key(self.address).0 ^ key(address).0) & mask(self.bits) == 0
    }
}

impl AllowedIps {
    /// Gives `prefix` to `peer` and returns who had it.
    pub(crate) fn insert(&mut self, prefix: Prefix, peer: u32) -> Option<u32> {
        let key = key(prefix.address).0;
        self.trie_mut(prefix.address).insert(key, prefix.bits, peer)
    }

    /// Takes `prefix` away and returns who had it.
    pub(crate) fn remove(&mut self, prefix: Prefix) -> Option<u32> {
        let key = key(prefix.address).0;
        self.trie_mut(prefix.address).remove(key, prefix.bits)
    }

    /// Returns who has the longest prefix that holds `address`.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<u32> {
        let trie = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        trie.lookup(key(address).0)
    }

    fn trie_mut(&mut self, address: IpAddr) -> &mut Trie {
        match address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }
}

/// Nodes in one arena; `NONE` stands for no node and no peer.
#[derive(Debug)]
struct Trie {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
}

#[derive(Debug)]
struct Node {
    /// The address bits from the top; those behind `bits` are zero.
    key: u128,
    children: [u32; 2],
    peer: u32,
    bits: u8,
}

/// Where the index of a node is written down.
#[derive(Clone, Copy)]
enum Link {
    Root,
    Child(u32, usize),
}

impl Default for Trie {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NONE,
        }
    }
}

impl Trie {
    fn lookup(&self, key: u128) -> Option<u32> {
        let mut found = NONE;
        let mut at = self.root;
        while at != NONE {
            let node = self.node(at);
            if (node.key ^ key) & mask(node.bits) != 0 {
                break;
            }
            if node.peer != NONE {
                found = node.peer;
            }
            if node.bits == 128 {
                break;
            }
            at = node.children[side(key, node.bits)];
        }
        (found != NONE).then_some(found)
    }

    fn insert(&mut self, key: u128, bits: u8, peer: u32) -> Option<u32> {
        let mut link = Link::Root;
        loop {
            let at = self.read(link);
            if at == NONE {
                let leaf = self.new_node(key, bits, peer);
                self.write(link, leaf);
                return None;
            }
            let node = self.node(at);
            let shared = shared_bits(node.key, key).min(bits).min(node.bits);
            if shared < node.bits {
                self.split(link, at, key, bits, shared, peer);
                return None;
            }
            if node.bits == bits {
                let node = self.node_mut(at);
                let former = std::mem::replace(&mut node.peer, peer);
                return (former != NONE).then_some(former);
            }
            link = Link::Child(at, side(key, node.bits));
        }
    }

    /// Puts a node for (`key`, `bits`) above or beside `at`, which leaves it after `shared` bits.
    fn split(&mut self, link: Link, at: u32, key: u128, bits: u8, shared: u8, peer: u32) {
        let old_side = side(self.node(at).key, shared);
        let above = if shared == bits {
            self.new_node(key, bits, peer)
        } else {
            let leaf = self.new_node(key, bits, peer);
            let fork = self.new_node(key & mask(shared), shared, NONE);
            self.write(Link::Child(fork, 1 - old_side), leaf);
            fork
        };
        self.write(Link::Child(above, old_side), at);
        self.write(link, above);
    }

    fn remove(&mut self, key: u128, bits: u8) -> Option<u32> {
        let mut above = Link::Root;
        let mut link = Link::Root;
        loop {
            let at = self.read(link);
            if at == NONE {
                return None;
            }
            let node = self.node(at);
            if node.bits > bits || (node.key ^ key) & mask(node.bits) != 0 {
                return None;
            }
            if node.bits == bits {
                let former = std::mem::replace(&mut self.node_mut(at).peer, NONE);
                self.prune(link);
                self.prune(above);
                return (former != NONE).then_some(former);
            }
            above = link;
            link = Link::Child(at, side(key, node.bits));
        }
    }

    /// Takes out the node at `link` when it holds no peer and less than two children.
    fn prune(&mut self, link: Link) {
        let at = self.read(link);
        if at == NONE {
            return;
        }
        let node = self.node(at);
        let [left, right] = node.children;
        if node.peer != NONE || (left != NONE && right != NONE) {
            return;
        }
        let only = if left == NONE { right } else { left };
        self.write(link, only);
        self.free.push(at);
    }

    fn new_node(&mut self, key: u128, bits: u8, peer: u32) -> u32 {
        let node = Node {
            key: key & mask(bits),
            children: [NONE; 2],
            peer,
            bits,
        };
        if let Some(at) = self.free.pop() {
            *self.node_mut(at) = node;
            return at;
        }
        let at = u32::try_from(self.nodes.len()).expect("less than 2^32 nodes fit into memory");
        self.nodes.push(node);
        at
    }

    fn read(&self, link: Link) -> u32 {
        match link {
            Link::Root => self.root,
            Link::Child(parent, side) => self.node(parent).children[side],
        }
    }

    fn write(&mut self, link: Link, at: u32) {
        match link {
            Link::Root => self.root = at,
            Link::Child(parent, side) => self.node_mut(parent).children[side] = at,
        }
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }
}

/// Returns the bits of an address from the top, and their number.
fn key(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

fn mask(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

fn shared_bits(a: u128, b: u128) -> u8 {
    u8::try_from((a ^ b).leading_zeros()).expect("at most 128")
}

/// Returns the bit behind the first `bits`, which are less than 128.
fn side(key: u128, bits: u8) -> usize {
    usize::from((key >> (127 - bits)) & 1 == 1)
}

const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests;
