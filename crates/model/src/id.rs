//! Ids of stored things: opaque, never reused, safe to print.

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
            utoipa::ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// An organisation: a tenant of the installation.
    OrgId
);
id!(
    /// A person.
    UserId
);
id!(
    /// A machine or a person's device with one WireGuard key.
    NodeId
);
id!(
    /// A token's row; the secret is not stored.
    TokenId
);
id!(
    /// A port that a node publishes under a name.
    ServiceId
);
id!(
    /// A site: LANs behind a node.
    SiteId
);
id!(
    /// A recorded session.
    SessionId
);
id!(
    /// A capture that somebody asked for, drawn at random: none is kept.
    CaptureId
);
id!(
    /// A rule of a policy.
    RuleId
);
id!(
    /// A browser in which a person has signed in.
    BrowserId
);
