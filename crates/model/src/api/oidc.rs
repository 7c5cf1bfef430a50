//! Sign-in by an identity provider (OpenID Connect Core 1.0): its settings and the sign-in itself.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::ZeroizeOnDrop;

use super::Timestamp;
use crate::{key::PublicKey, name::Label, policy::Role, token::Pin};

/// The longest issuer, client id, subject or name of a group, in bytes (OpenID Connect Core 1.0, 2
/// has the bound for a subject).
pub const OIDC_TEXT_LENGTH_MAX: usize = 255;

/// Most scopes of one provider.
pub const OIDC_SCOPES_MAX: usize = 32;

/// Most groups of one provider that have a role.
pub const OIDC_ROLES_MAX: usize = 256;

/// The path at which a device's loopback interface takes the browser back (RFC 8252, 7.3).
pub const OIDC_CALLBACK_PATH: &str = "/callback";

/// A text that whoever has it can act with: it is not printed, and leaves memory when dropped.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

/// Sets the identity provider of an organisation.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewProvider {
    /// The organisation; that of the asking device if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// The issuer, an `https` URL, exactly as its tokens name it.
    pub issuer: String,
    /// The client id that the provider gave.
    pub client_id: String,
    /// The client secret; absent for a public client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub client_secret: Option<Secret>,
    /// What to ask for beside `openid`.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The claim that holds the groups: a name, or a JSON Pointer (RFC 6901) such as
    /// `/realm_access/roles`.
    pub groups_claim: String,
    /// The role of the members of each group; whoever is in none of them is a guest.
    #[serde(default)]
    pub roles: BTreeMap<String, Role>,
}

/// The identity provider of an organisation, without its secret.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Provider {
    /// The organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// The issuer.
    pub issuer: String,
    /// The client id.
    pub client_id: String,
    /// Whether there is a client secret.
    pub has_secret: bool,
    /// What is asked for beside `openid`.
    pub scopes: Vec<String>,
    /// The claim that holds the groups.
    pub groups_claim: String,
    /// The role of the members of each group.
    pub roles: BTreeMap<String, Role>,
    /// When it was set.
    pub created: Timestamp,
    /// Where people sign in: the URL for `ginnel login`.
    pub url: String,
    /// The server's pin, for `ginnel login`; absent with an operator's certificate.
    #[schema(value_type = Option<String>)]
    pub pin: Option<Pin>,
    /// Where the provider tells that somebody signed out (OpenID Connect Back-Channel Logout 1.0).
    pub back_channel_logout_uri: String,
}

/// Begins a sign-in on a device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewSignIn {
    /// The organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// The public key of the device; its private key stays there.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
    /// The port of 127.0.0.1 at which the device takes the browser back; absent for a device
    /// code (RFC 8628).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_port: Option<u16>,
}

/// A sign-in has begun: the person goes to `url`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct BegunSignIn {
    /// Ends the sign-in; for this device only.
    #[schema(value_type = String)]
    pub attempt: Secret,
    /// Where the person signs in with a browser.
    pub url: String,
    /// What she types there; absent when the browser comes back to the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_code: Option<String>,
    /// How long to wait between two requests for the end, in seconds.
    pub interval_seconds: u64,
    /// When it is too late.
    pub expires: Timestamp,
}

/// Ends a sign-in: the device asks for its session.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct SignIn {
    /// What the begin gave.
    #[schema(value_type = String)]
    pub attempt: Secret,
    /// The device's name, unique in the organisation.
    #[schema(value_type = String)]
    pub name: Label,
    /// What the browser brought back; absent with a device code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AuthorizationResponse>,
}

/// What the browser brought back to the device (RFC 6749, 4.1.2; RFC 9207, 2).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct AuthorizationResponse {
    /// The authorization code.
    #[schema(value_type = String)]
    pub code: Secret,
    /// The state of the request.
    pub state: String,
    /// The issuer, if the provider names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
}

/// The person has not signed in yet (202): ask again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct PendingSignIn {
    /// How long to wait before the next request, in seconds.
    pub interval_seconds: u64,
}

impl Secret {
    /// Takes a text as a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text, to be sent or stored.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_print_a_secret() {
        let begun = BegunSignIn {
            attempt: Secret::new("hidden"),
            url: String::new(),
            user_code: None,
            interval_seconds: 5,
            expires: Timestamp(0),
        };
        assert!(!format!("{begun:?}").contains("hidden"));
        assert!(serde_json::to_string(&begun).unwrap().contains("hidden"));
    }
}
