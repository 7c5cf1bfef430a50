//! `ginnel oidc`: the identity provider by which people of an organisation sign in.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use model::{
    api::{NewProvider, Provider, Secret},
    name::Label,
    policy::Role,
};
use zeroize::Zeroizing;

use crate::{
    admin::{client, time},
    cli::Global,
    remedy::Advise as _,
    terminal::{self, Column},
};

/// Set, show and remove the identity provider by which people sign in
///
/// Whoever signs in first becomes a person of the organisation, with the highest role of her
/// groups; groups without a role make a guest. The provider is asked every minute whether she is
/// still there: if not, her sessions and devices end at once, and the audit says why. People whom
/// you remove here and not at the provider come back with their next sign-in.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,

    /// The organisation, if you are in several
    #[arg(long, global = true)]
    org: Option<Label>,
}

const EXAMPLES: &str = "\
Examples:
  ginnel oidc set --issuer https://id.example.org --client-id ginnel \\
      --client-secret-file secret.txt --role ops=admin --role dev=developer
  ginnel oidc set --issuer https://id.example.org/realms/acme --client-id ginnel \\
      --groups-claim /realm_access/roles --role staff=developer
  ginnel oidc show

Register the redirect URI http://127.0.0.1/callback (any port, RFC 8252) at the provider, or let it
give device codes; the back-channel logout URI is in `ginnel oidc show`.";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show the provider, and how people sign in
    Show,
    /// Set the provider in place of any other
    Set {
        /// The issuer, an https URL, exactly as the provider names itself
        #[arg(long, value_name = "URL")]
        issuer: String,
        /// The client id that the provider gave
        #[arg(long, value_name = "ID")]
        client_id: String,
        /// A file with the client secret; without one this is a public client
        #[arg(long, value_name = "FILE")]
        client_secret_file: Option<PathBuf>,
        /// What to ask for beside `openid`; again for each
        #[arg(long = "scope", value_name = "SCOPE", default_values = DEFAULT_SCOPES)]
        scopes: Vec<String>,
        /// The claim with the groups: its name, or a JSON Pointer such as /realm_access/roles
        #[arg(long, value_name = "PATH", default_value = "groups")]
        groups_claim: String,
        /// What the members of a group may be; again for each
        #[arg(long = "role", value_name = "GROUP=ROLE", value_parser = parse_role)]
        roles: Vec<(String, Role)>,
    },
    /// Remove the provider; every session that it gave ends within a minute
    Remove,
}

/// `offline_access` asks for a refresh token, by which sessions are confirmed.
const DEFAULT_SCOPES: [&str; 3] = ["profile", "email", "offline_access"];

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let client = client(global)?;
    let org = args.org;
    match args.action {
        Action::Show => {
            let provider = client.provider(org.as_ref()).await?;
            terminal::show(&provider, COLUMNS, global.json)?;
        }
        Action::Set {
            issuer,
            client_id,
            client_secret_file,
            scopes,
            groups_claim,
            roles,
        } => {
            let client_secret = client_secret_file
                .map(|path| read_secret(&path))
                .transpose()?;
            let request = NewProvider {
                org,
                issuer,
                client_id,
                client_secret,
                scopes,
                groups_claim,
                roles: roles.into_iter().collect::<BTreeMap<_, _>>(),
            };
            let provider = client.set_provider(&request).await?;
            terminal::show(&provider, COLUMNS, global.json)?;
        }
        Action::Remove => {
            client.remove_provider(org.as_ref()).await?;
            terminal::done("the identity provider is removed", global.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read_secret(path: &std::path::Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .with_context(|| format!("read the client secret from `{}`", path.display()))
        .remedy("see that the file is there and that you may read it")?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

fn parse_role(text: &str) -> Result<(String, Role), String> {
    // A group may hold the sign, a role does not.
    let (group, role) = text
        .rsplit_once('=')
        .ok_or("it has the form GROUP=ROLE, such as ops=admin")?;
    let role = role
        .parse()
        .map_err(|_| format!("`{role}` is no role: admin, developer or guest"))?;
    Ok((group.to_owned(), role))
}

const COLUMNS: &[Column<Provider>] = &[
    ("ORG", |provider| provider.org.to_string()),
    ("ISSUER", |provider| provider.issuer.clone()),
    ("CLIENT ID", |provider| provider.client_id.clone()),
    ("SECRET", |provider| {
        if provider.has_secret { "yes" } else { "no" }.to_owned()
    }),
    ("SCOPES", |provider| provider.scopes.join(" ")),
    ("GROUPS", |provider| provider.groups_claim.clone()),
    ("ROLES", |provider| {
        let roles = provider.roles.iter();
        let roles: Vec<_> = roles
            .map(|(group, role)| format!("{group}={role}"))
            .collect();
        roles.join(" ")
    }),
    ("SET", |provider| time(provider.created)),
    ("LOGOUT URI", |provider| {
        provider.back_channel_logout_uri.clone()
    }),
    ("SIGN IN", sign_in_command),
];

/// Returns the command by which people sign in.
fn sign_in_command(provider: &Provider) -> String {
    let mut line = format!("ginnel login {} --org {}", provider.url, provider.org);
    if let Some(pin) = provider.pin {
        line.push_str(&format!(" --pin {pin}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sign_parts_group_and_role() {
        let role = |text: &str| parse_role(text).ok();
        assert_eq!(role("ops=admin"), Some(("ops".to_owned(), Role::Admin)));
        assert_eq!(role("a=b=guest"), Some(("a=b".to_owned(), Role::Guest)));
        for text in ["", "ops", "ops=", "ops=king", "ops=Admin "] {
            assert_eq!(role(text), None, "{text}");
        }
    }
}
