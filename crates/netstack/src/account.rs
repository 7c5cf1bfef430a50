//! What each peer holds of the memory and of the tables, so that a greedy one starves nobody.
//!
//! A peer may hold at most as much as is free (dynamic thresholds, after Choudhury and Hahne).
//! One peer alone comes to a half, N greedy ones to 1/(N+1) each, and whoever comes next still
//! finds that much: no reservation that lies idle, and no number to choose.

use std::{collections::HashMap, net::IpAddr};

use crate::{
    prefix::{Prefix, Prefixes},
    secret::TableKey,
    slab::{AccountId, Slab},
    tcp::buffer::{Budget, Spare},
};

/// Whose connection it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Owner {
    /// A remote address that nobody has assigned.
    Address(IpAddr),
    /// What [`Stack::set_accounts`](crate::Stack::set_accounts) said.
    Given(u64),
}

#[derive(Debug)]
struct Account {
    owner: Owner,
    /// How many hold this account; the last to leave removes it.
    holders: usize,
    half_open: usize,
    bytes: usize,
}

/// Who holds how much; bounded by the connections.
#[derive(Debug)]
pub(crate) struct Accounts {
    accounts: Slab<AccountId, Account>,
    by_owner: HashMap<Owner, AccountId, TableKey>,
    given: Prefixes<u64>,
    bytes: usize,
    bytes_max: usize,
    half_open: usize,
    spare: Spare,
}

impl Accounts {
    pub(crate) fn new(key: TableKey, bytes_max: usize) -> Self {
        Self {
            accounts: Slab::new(),
            by_owner: HashMap::with_hasher(key),
            given: Prefixes::new(key),
            bytes: 0,
            bytes_max,
            half_open: 0,
            spare: Spare::default(),
        }
    }

    pub(crate) fn assign(&mut self, accounts: &[(Prefix, u64)]) {
        self.given.clear();
        for &(prefix, account) in accounts {
            self.given.insert(prefix, account);
        }
    }

    fn owner(&self, remote: IpAddr) -> Owner {
        self.given
            .find(remote)
            .map_or(Owner::Address(remote), Owner::Given)
    }

    /// Counts one more holder for the peer at `remote`.
    pub(crate) fn open(&mut self, remote: IpAddr) -> AccountId {
        let owner = self.owner(remote);
        let accounts = &mut self.accounts;
        let id = *self.by_owner.entry(owner).or_insert_with(|| {
            accounts.insert(Account {
                owner,
                holders: 0,
                half_open: 0,
                bytes: 0,
            })
        });
        self.account(id).holders += 1;
        id
    }

    /// The holder is gone, and has given its memory back.
    pub(crate) fn close(&mut self, id: AccountId) {
        let account = self.account(id);
        account.holders -= 1;
        if account.holders == 0 {
            debug_assert_eq!((account.bytes, account.half_open), (0, 0));
            let owner = account.owner;
            self.accounts.remove(id);
            self.by_owner.remove(&owner);
        }
    }

    /// Counts one more half-open connection.
    pub(crate) fn begin_opening(&mut self, id: AccountId) {
        self.account(id).half_open += 1;
        self.half_open += 1;
    }

    pub(crate) fn finish_opening(&mut self, id: AccountId) {
        self.account(id).half_open -= 1;
        self.half_open -= 1;
    }

    /// Tells whether the peer at `remote` may hold one more of `max` half-open connections.
    pub(crate) fn admits_opening(&self, remote: IpAddr, max: usize) -> bool {
        let held = self.find(remote).map_or(0, |account| account.half_open);
        held < max.saturating_sub(self.half_open)
    }

    /// Tells whether the peer at `remote` may hold one more of `max` connections, of which `all`
    /// exist.
    pub(crate) fn admits(&self, remote: IpAddr, all: usize, max: usize) -> bool {
        let held = self.find(remote).map_or(0, |account| account.holders);
        held < max.saturating_sub(all)
    }

    fn find(&self, remote: IpAddr) -> Option<&Account> {
        let id = self.by_owner.get(&self.owner(remote))?;
        self.accounts.get(*id)
    }

    /// Returns what the peer holds and may hold now.
    pub(crate) fn budget(&self, id: AccountId) -> Budget {
        let free = self.bytes_max.saturating_sub(self.bytes);
        let used = self.accounts.get(id).map_or(0, |account| account.bytes);
        // Each byte that the peer takes is one less that is free, hence the half.
        let room = free.saturating_sub(used) / 2;
        Budget {
            used,
            max: used + room,
            spare: Spare::default(),
        }
    }

    /// Lets `act` take memory of the peer's or give it back.
    pub(crate) fn charge<R>(&mut self, id: AccountId, act: impl FnOnce(&mut Budget) -> R) -> R {
        let mut budget = self.budget(id);
        budget.spare = std::mem::take(&mut self.spare);
        let before = budget.used;
        let result = act(&mut budget);
        self.spare = budget.spare;
        self.account(id).bytes = budget.used;
        self.bytes = self.bytes - before + budget.used;
        result
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn account(&mut self, id: AccountId) -> &mut Account {
        self.accounts
            .get_mut(id)
            .expect("an account lives as long as its holders")
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::secret::Secret;

    fn accounts() -> Accounts {
        let (_, key) = Secret::new(&[0; 32]);
        Accounts::new(key, 1_000)
    }

    fn address(host: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, host).into()
    }

    fn take(accounts: &mut Accounts, id: AccountId) -> usize {
        accounts.charge(id, |budget| {
            let room = budget.room();
            budget.used += room.min(1);
            room
        })
    }

    #[test]
    fn a_greedy_peer_leaves_as_much_free_as_it_holds() {
        let mut accounts = accounts();
        let greedy = accounts.open(address(1));
        while take(&mut accounts, greedy) > 0 {}
        assert_eq!(accounts.bytes(), 500);
        let second = accounts.open(address(2));
        let mut taken = 0;
        while take(&mut accounts, second) > 0 {
            taken += 1;
        }
        assert_eq!(taken, 250);
        // Whoever comes next still finds something: half of what is free.
        let third = accounts.open(address(3));
        assert_eq!(accounts.budget(third).room(), 125);
        accounts.charge(greedy, |budget| budget.used = 0);
        accounts.close(greedy);
        assert_eq!(accounts.bytes(), 250);
    }

    #[test]
    fn addresses_of_one_peer_share_an_account() {
        let mut accounts = accounts();
        let prefix = Prefix::new(address(0), 24).unwrap();
        accounts.assign(&[(prefix, 7)]);
        let first = accounts.open(address(1));
        assert_eq!(accounts.open(address(2)), first);
        let outside = Ipv4Addr::new(10, 0, 1, 1).into();
        assert_ne!(accounts.open(outside), first);
        accounts.close(first);
        accounts.close(first);
        assert_ne!(accounts.open(address(1)), first, "it was gone");
    }
}
