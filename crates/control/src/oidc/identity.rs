//! Who a person is by her claims: subject, name, groups, and the role that follows.

use std::collections::{BTreeMap, BTreeSet};

use model::{api::OIDC_TEXT_LENGTH_MAX, name::Label, policy::Role};
use serde_json::Value;

/// Groups of one person that are read; a provider may send thousands.
const GROUPS_MAX: usize = 1_000;

/// Claims that may name a person, best first. A name is no identity.
const NAME_CLAIMS: [&str; 3] = ["preferred_username", "email", "nickname"];

/// What the claims say of a person.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) subject: String,
    /// A name that she would like; it may be taken.
    pub(crate) name: Option<Label>,
    /// `None` if the claims have no groups at all.
    groups: Option<Vec<String>>,
}

impl Identity {
    /// Reads the claims about `subject`.
    pub(super) fn of(subject: &str, claims: &Value, groups_claim: &str) -> Self {
        let names = NAME_CLAIMS.iter().filter_map(|claim| claims.get(claim));
        Self {
            subject: subject.to_owned(),
            name: names.filter_map(Value::as_str).find_map(label),
            groups: groups(claims, groups_claim),
        }
    }

    /// Tells whether UserInfo need not be asked.
    pub(super) fn is_complete(&self) -> bool {
        self.name.is_some() && self.groups.is_some()
    }

    /// Fills what is missing from another answer about the same person.
    pub(super) fn or(self, more: Self) -> Self {
        Self {
            subject: self.subject,
            name: self.name.or(more.name),
            groups: self.groups.or(more.groups),
        }
    }

    /// Returns the groups; whoever has none is in none.
    pub(crate) fn groups(&self) -> &[String] {
        self.groups.as_deref().unwrap_or_default()
    }

    /// Returns the groups that rules can name.
    pub(crate) fn labels(&self) -> Vec<Label> {
        let labels: BTreeSet<Label> = self
            .groups()
            .iter()
            .filter_map(|group| group.parse().ok())
            .collect();
        labels.into_iter().collect()
    }
}

/// Returns the highest role of a member of `groups`; a guest's if none of them has one.
pub(crate) fn role(roles: &BTreeMap<String, Role>, groups: &[String]) -> Role {
    let rank = |role: &Role| match role {
        Role::Guest => 0,
        Role::Developer => 1,
        Role::Admin => 2,
    };
    let found = groups.iter().filter_map(|group| roles.get(group));
    found.copied().max_by_key(rank).unwrap_or(Role::Guest)
}

/// Finds the groups by a claim's name or a JSON Pointer (RFC 6901): an array of names, or one.
fn groups(claims: &Value, claim: &str) -> Option<Vec<String>> {
    let value = if claim.starts_with('/') {
        claims.pointer(claim)?
    } else {
        claims.get(claim)?
    };
    let fits = |text: &&str| (1..=OIDC_TEXT_LENGTH_MAX).contains(&text.len());
    let names: Vec<String> = match value {
        Value::Array(values) => {
            let texts = values.iter().filter_map(Value::as_str).filter(fits);
            texts.take(GROUPS_MAX).map(str::to_owned).collect()
        }
        Value::String(one) => Some(one.as_str())
            .filter(fits)
            .into_iter()
            .map(str::to_owned)
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
    };
    Some(names)
}

/// Makes a label of a name or of what stands before the `@` of an address.
fn label(text: &str) -> Option<Label> {
    let local = text.split('@').next().unwrap_or_default();
    let mut name = String::new();
    for letter in local.chars().take(Label::LENGTH_MAX) {
        if letter.is_ascii_alphanumeric() {
            name.push(letter.to_ascii_lowercase());
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    // The account of every machine's administrator names nobody.
    let label: Label = name.trim_matches('-').parse().ok()?;
    Some(label).filter(|label| label.as_str() != "root")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn groups_stand_where_the_path_says() {
        let check = |claims: Value, claim: &str, expected: Option<&[&str]>| {
            let found = groups(&claims, claim);
            assert_eq!(found, expected.map(strings), "{claims} {claim}");
        };
        check(json!({"groups": ["a", "b"]}), "groups", Some(&["a", "b"]));
        check(json!({"groups": "a"}), "groups", Some(&["a"]));
        check(json!({"groups": []}), "groups", Some(&[]));
        check(
            json!({"groups": [1, null, "a", ""]}),
            "groups",
            Some(&["a"]),
        );
        check(json!({"groups": {"a": true}}), "groups", None);
        check(json!({}), "groups", None);
        let nested = json!({"realm_access": {"roles": ["ops"]}, "https://x/groups": ["web"]});
        check(nested.clone(), "/realm_access/roles", Some(&["ops"]));
        check(nested.clone(), "/https:~1~1x~1groups", Some(&["web"]));
        check(nested.clone(), "https://x/groups", Some(&["web"]));
        check(nested, "realm_access.roles", None);
        let many = json!({"groups": vec!["a"; 5_000]});
        assert_eq!(groups(&many, "groups").unwrap().len(), GROUPS_MAX);
    }

    #[test]
    fn the_highest_role_counts_and_unknown_groups_give_guest() {
        let roles = BTreeMap::from([
            ("ops".to_owned(), Role::Admin),
            ("dev".to_owned(), Role::Developer),
            ("all".to_owned(), Role::Guest),
        ]);
        let check = |groups: &[&str], expected| {
            assert_eq!(role(&roles, &strings(groups)), expected, "{groups:?}");
        };
        check(&[], Role::Guest);
        check(&["other", "Ops", "ops "], Role::Guest);
        check(&["all", "dev"], Role::Developer);
        check(&["dev", "ops", "all"], Role::Admin);
    }

    #[test]
    fn a_name_is_made_a_label() {
        let check = |text: &str, expected: Option<&str>| {
            let found = label(text);
            assert_eq!(found.as_ref().map(Label::as_str), expected, "{text:?}");
        };
        check("alice", Some("alice"));
        check("Alice.Smith@example.org", Some("alice-smith"));
        check("--$(id)--", Some("id"));
        check("root", None);
        check("root@example.org", None);
        check("@example.org", None);
        check("\u{5c0f}", None);
        check(&"a".repeat(300), Some(&"a".repeat(63)));
    }

    #[test]
    fn rules_can_name_groups_that_are_labels() {
        let claims = json!({"sub": "1", "groups": ["Ops", "ops", "a b", "web"]});
        let identity = Identity::of("1", &claims, "groups");
        let labels: Vec<_> = identity.labels().iter().map(Label::to_string).collect();
        assert_eq!(labels, ["ops", "web"]);
    }
}
