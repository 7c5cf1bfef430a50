//! The nodes of a site with several of them: which one carries it, and how it stands with each.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::NodeId;

/// Most nodes of a site: the gateway probes each of them every second.
pub const SITE_NODES_MAX: usize = 4;

/// What a gateway has found out about one node of a site by probes that it forwards there.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It has answered no probe yet, and not missed enough of them.
    #[default]
    Untried,
    /// It answers, and says that it leads to the LAN.
    Healthy,
    /// It does not answer.
    Silent,
    /// It answers that its machine has no working interface in the LAN.
    NoLan,
    /// It answers that its machine forwards nothing, which the mode of the site needs.
    NotForwarding,
    /// It answers again, but not for long enough to be trusted.
    Returning,
}

/// What a gateway says of one node of a site.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NodeHealth {
    /// The node.
    pub node: NodeId,
    /// Whether the gateway leads to the site through it.
    pub carries: bool,
    /// What was found out: `untried`, `healthy`, `silent`, `no_lan`, `not_forwarding` or
    /// `returning`.
    #[schema(value_type = String)]
    pub health: Health,
}

impl Health {
    /// Every kind, in the order of their codes.
    pub const ALL: [Self; 6] = [
        Self::Untried,
        Self::Healthy,
        Self::Silent,
        Self::NoLan,
        Self::NotForwarding,
        Self::Returning,
    ];

    /// Returns its number in the probes of a gateway.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Untried => 0,
            Self::Healthy => 1,
            Self::Silent => 2,
            Self::NoLan => 3,
            Self::NotForwarding => 4,
            Self::Returning => 5,
        }
    }

    /// Returns what has that number; `None` when nothing has.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|health| health.code() == code)
    }

    /// Says it to people.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Untried => "has not answered the gateway yet",
            Self::Healthy => "healthy",
            Self::Silent => "does not answer the gateway",
            Self::NoLan => "has no working interface in the LAN",
            Self::NotForwarding => "does not forward IPv4",
            Self::Returning => "answers again, not for long enough yet",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_health_has_a_code_of_its_own() {
        for health in Health::ALL {
            assert_eq!(Health::of_code(health.code()), Some(health));
        }
        assert_eq!(Health::of_code(6), None);
    }
}
