//! Which IPv4 addresses a site claims for its hosts, and where another site's mean the same.
//!
//! Hosts of two sites with one prefix are told apart by their IPv6 addresses, always. By IPv4 they
//! are where machines know one of both by an alias, and hosts of a site that is routed or may be,
//! which have such addresses themselves, know the other by one.

use model::{
    api::{NewSite, SITE_PREFIXES_MAX},
    name::Label,
    site::{Alias, Ipv4Prefix, Mode},
};

use crate::storage::site::Site;

/// What a site has, or shall have.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    name: &'a Label,
    prefixes: &'a [Ipv4Prefix],
    aliases: &'a [Alias],
    mode: Mode,
}

impl<'a> Claim<'a> {
    pub(super) fn of(site: &'a Site) -> Self {
        Self {
            name: &site.name,
            prefixes: &site.prefixes,
            aliases: &site.aliases,
            mode: site.mode,
        }
    }

    pub(super) fn of_new(site: &'a NewSite) -> Self {
        Self {
            name: &site.name,
            prefixes: &site.prefixes,
            aliases: &site.aliases,
            mode: site.mode,
        }
    }

    pub(super) fn with(self, aliases: &'a [Alias]) -> Self {
        Self { aliases, ..self }
    }

    /// Says what is wrong with it whatever other sites have.
    pub(super) fn fault(self) -> Option<String> {
        if !(1..=SITE_PREFIXES_MAX).contains(&self.prefixes.len()) {
            return Some(format!("a site has 1 to {SITE_PREFIXES_MAX} prefixes"));
        }
        for (at, one) in self.prefixes.iter().enumerate() {
            if let Some(other) = self.prefixes[..at].iter().find(|it| it.overlaps(*one)) {
                return Some(format!("the prefixes {other} and {one} overlap"));
            }
        }
        for (at, one) in self.aliases.iter().enumerate() {
            let (prefix, alias) = (one.prefix(), one.alias());
            if !self.prefixes.contains(&prefix) {
                let whole = "an alias stands for a whole prefix of its site";
                return Some(format!("{whole}, and {prefix} is none of `{}`", self.name));
            }
            let former = &self.aliases[..at];
            if former.iter().any(|other| other.prefix() == prefix) {
                return Some(format!("{prefix} has one alias at most"));
            }
            if let Some(other) = former.iter().find(|it| it.alias().overlaps(alias)) {
                return Some(format!("the aliases {} and {alias} overlap", other.alias()));
            }
            if let Some(own) = self.prefixes.iter().find(|it| it.overlaps(alias)) {
                return Some(format!("the alias {alias} overlaps the prefix {own}"));
            }
        }
        None
    }

    /// Says where an alias of one of both has addresses of the other.
    pub(super) fn clash_of_aliases(self, other: Self) -> Option<String> {
        let known_as = |claim: Self| claim.aliases.iter().map(|alias| alias.alias());
        for alias in known_as(self) {
            if let Some(taken) = known_as(other).find(|taken| taken.overlaps(alias)) {
                let (own, its) = (self.name, other.name);
                return Some(format!(
                    "the alias {alias} of `{own}` overlaps the alias {taken} of `{its}`"
                ));
            }
        }
        let inside = |one: Self, two: Self| {
            let mut pairs = known_as(one).flat_map(|it| two.prefixes.iter().map(move |p| (it, *p)));
            let found = pairs.find(|(alias, prefix)| alias.overlaps(*prefix));
            found.map(|(alias, prefix)| {
                let (own, its) = (one.name, two.name);
                format!("the alias {alias} of `{own}` overlaps the prefix {prefix} of `{its}`")
            })
        };
        inside(self, other).or_else(|| inside(other, self))
    }

    /// Says where hosts of both have one address, one of both is routed, and no alias tells them
    /// apart for it.
    pub(super) fn clash_of_prefixes(self, other: Self) -> Option<String> {
        if self.mode != Mode::Routed && other.mode != Mode::Routed {
            return None;
        }
        for prefix in self.prefixes {
            for taken in other.prefixes.iter().filter(|it| it.overlaps(*prefix)) {
                let lacks_own = other.knows_as_they_are() && !self.has_alias(*prefix);
                let lacks_its = self.knows_as_they_are() && !other.has_alias(*taken);
                let (own, its) = (self.name, other.name);
                let who = match (lacks_own, lacks_its) {
                    (false, false) => continue,
                    (true, false) => format!("`{own}` needs an alias for {prefix}"),
                    (false, true) => format!("`{its}` needs an alias for {taken}"),
                    (true, true) => format!("both need aliases ({prefix} and {taken})"),
                };
                return Some(format!(
                    "`{own}` and `{its}` both claim {prefix}, by which hosts of a routed site are \
                     reached: {who}"
                ));
            }
        }
        None
    }

    /// Tells whether its hosts may see those of other sites by IPv4, and have own addresses there.
    fn knows_as_they_are(self) -> bool {
        match self.mode {
            Mode::Routed | Mode::Auto => true,
            Mode::Masquerade => false,
        }
    }

    fn has_alias(self, prefix: Ipv4Prefix) -> bool {
        self.aliases.iter().any(|alias| alias.prefix() == prefix)
    }
}
