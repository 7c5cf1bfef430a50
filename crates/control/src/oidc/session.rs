//! Sessions that a provider gave: confirmed again and again, and ended when it says no.

use std::{collections::BTreeMap, time::Duration};

use model::{id::UserId, policy::Role};
use tokio::{task::JoinSet, time::sleep};

use super::{Error, SignedIn, Tokens, identity::role, token, token::Refusal};
use crate::{
    Server,
    api::{error::ApiError, ssh},
    storage::{
        self, Change, Touched,
        audit::{Actor, Entry},
        oidc::{Place, Session},
        user::User,
    },
};

/// How long a session lasts that its provider cannot be asked about, in seconds: an hour, whether
/// there is no refresh token or no answer.
const UNCONFIRMED_SECONDS_MAX: i64 = 60 * 60;

/// Sessions that are read at once.
const BATCH: u32 = 256;

/// Sessions that one provider is asked about at once.
const ASKED_AT_ONCE: usize = 8;

/// The shortest pause between two rounds.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// What a provider says of a session.
enum Verdict {
    /// The person is there, with these groups, and the next token is sealed.
    Confirmed {
        identity: super::Identity,
        roles: BTreeMap<String, Role>,
        refresh_token: Vec<u8>,
    },
    /// She is not, for this reason.
    Refused(String),
    /// Nobody knows.
    Unknown(Error),
}

impl Server {
    /// Confirms sessions for as long as it is polled.
    pub(crate) async fn keep_confirming(self) {
        let pause = self
            .inner
            .revalidation
            .clamp(PAUSE_MIN, Duration::from_secs(1));
        loop {
            sleep(pause).await;
            if let Err(error) = self.revalidate().await {
                let error = format!("{error:#}");
                tracing::warn!(error, "sessions were not confirmed");
            }
        }
    }

    /// Asks identity providers about every session that is due, and ends those that they refuse.
    /// [`Server::serve`] does so by itself.
    pub async fn revalidate(&self) -> anyhow::Result<()> {
        let mut down = BTreeMap::new();
        loop {
            let now = self.now();
            let mut read = self.inner.store.read().await?;
            let due = storage::oidc::due_sessions(&mut read, now, 1).await?;
            drop(read);
            if due.is_empty() {
                return Ok(());
            }
            // Each is asked about once a round, whatever comes of it, and by one server: a provider
            // takes a refresh token once.
            let mut change = self.change().await?;
            let due = storage::oidc::due_sessions(change.connection(), now, BATCH).await?;
            for session in &due {
                let next = now + self.interval_seconds();
                storage::oidc::update_due(change.connection(), session.place, next).await?;
            }
            change.commit_unaudited().await?;
            let mut issuers: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for session in due {
                let same = issuers.entry(session.issuer.clone()).or_default();
                same.push(session);
            }
            let mut checks = JoinSet::new();
            for (issuer, sessions) in issuers {
                let (server, down) = (self.clone(), down.remove(&issuer));
                checks.spawn(async move { (issuer, server.confirm_all(sessions, down).await) });
            }
            while let Some(checked) = checks.join_next().await {
                if let (issuer, Some(error)) = checked? {
                    down.insert(issuer, error);
                }
            }
        }
    }

    /// Asks one provider about sessions, some at a time, until it does not answer: what is `down`
    /// is not asked again in the same round, so that it delays nobody else's. Returns why it is.
    async fn confirm_all(&self, sessions: Vec<Session>, down: Option<String>) -> Option<String> {
        let mut down = down;
        let mut sessions = sessions.into_iter().peekable();
        while sessions.peek().is_some() {
            let mut checks = JoinSet::new();
            for session in sessions.by_ref().take(ASKED_AT_ONCE) {
                let (server, down) = (self.clone(), down.clone());
                checks.spawn(async move {
                    match down {
                        Some(error) => server.unconfirmed(&session, error).await.map(Some),
                        None => server.confirm(&session).await,
                    }
                });
            }
            while let Some(checked) = checks.join_next().await {
                match checked {
                    Ok(Ok(error)) => down = error.or(down),
                    Ok(Err(error)) => {
                        tracing::warn!(error = error.message, "a session was not confirmed");
                    }
                    Err(error) => tracing::error!(%error, "a session was not confirmed"),
                }
            }
        }
        down
    }

    /// Begins the session of a device in a change that enrols it.
    pub(crate) async fn insert_oidc_session(
        &self,
        change: &mut Change,
        node: model::id::NodeId,
        user: UserId,
        signed_in: &SignedIn,
    ) -> Result<(), storage::Error> {
        let session = self.begun_session(change.now(), Place::Device(node), user, signed_in);
        storage::oidc::insert_session(change.connection(), node, &session).await
    }

    /// Returns the session that begins with a sign-in.
    pub(crate) fn begun_session(
        &self,
        now: i64,
        place: Place,
        user: UserId,
        signed_in: &SignedIn,
    ) -> Session {
        let refresh_token = signed_in.refresh_token.as_ref();
        let due = match refresh_token {
            Some(_) => now + self.interval_seconds(),
            None => unconfirmed_end(now, signed_in.expires),
        };
        Session {
            place,
            user,
            org: signed_in.org,
            issuer: signed_in.provider.issuer.clone(),
            subject: signed_in.identity.subject.clone(),
            sid: signed_in.sid.clone(),
            refresh_token: refresh_token.map(|token| self.seal_refresh_token(place, token)),
            begun: now,
            confirmed: now,
            due,
        }
    }

    fn interval_seconds(&self) -> i64 {
        i64::try_from(self.inner.revalidation.as_secs()).unwrap_or(UNCONFIRMED_SECONDS_MAX)
    }

    /// Asks about one session. Returns why the provider does not answer.
    async fn confirm(&self, session: &Session) -> Result<Option<String>, ApiError> {
        let (identity, roles, refresh_token) = match self.verdict(session).await? {
            Verdict::Confirmed {
                identity,
                roles,
                refresh_token,
            } => (identity, roles, refresh_token),
            Verdict::Refused(reason) => {
                self.end_session(session, &reason).await?;
                return Ok(None);
            }
            Verdict::Unknown(error) => {
                let is_down = matches!(error, Error::Fault(_));
                let error = format!("{:#}", anyhow::Error::new(error));
                let error = self.unconfirmed(session, error).await?;
                return Ok(Some(error).filter(|_| is_down));
            }
        };
        let mut change = self.change().await?;
        let now = change.now();
        let due = now + self.interval_seconds();
        let connection = change.connection();
        let same = storage::oidc::update_confirmed(connection, now, session, &refresh_token, due);
        if !same.await? {
            // The person signed in on the device again meanwhile, or it left, or the browser did.
            return Ok(None);
        }
        let Some(user) = storage::user::user(connection, session.user).await? else {
            return Ok(None);
        };
        let given = role(&roles, identity.groups());
        match self.follow(&mut change, &user, &identity, given).await? {
            Some(entry) => {
                self.commit(change, entry, Touched::Org(session.org))
                    .await?;
            }
            None => change.commit_unaudited().await?,
        }
        Ok(None)
    }

    /// Ends a session that nobody has confirmed for too long. Returns the error again.
    async fn unconfirmed(&self, session: &Session, error: String) -> Result<String, ApiError> {
        tracing::warn!(place = ?session.place, error, "a session was not confirmed");
        if self.now() - session.confirmed >= UNCONFIRMED_SECONDS_MAX {
            let reason = format!("not confirmed for an hour: {error}");
            self.end_session(session, &reason).await?;
        }
        Ok(error)
    }

    async fn verdict(&self, session: &Session) -> Result<Verdict, ApiError> {
        let mut read = self.inner.store.read().await?;
        let provider = storage::oidc::provider(&mut read, session.org).await?;
        drop(read);
        let provider = provider.filter(|provider| provider.issuer == session.issuer);
        let Some(provider) = provider else {
            let reason = "the organisation has this identity provider no more";
            return Ok(Verdict::Refused(reason.to_owned()));
        };
        if session.refresh_token.is_none() {
            let reason = "its time is over, and the identity provider gave no refresh token";
            return Ok(Verdict::Refused(reason.to_owned()));
        }
        let roles = provider.roles.clone();
        Ok(match self.refresh(session, provider).await {
            Ok((identity, refresh_token)) => Verdict::Confirmed {
                identity,
                roles,
                refresh_token,
            },
            // RFC 6749, 5.2: the token is invalid, expired, revoked, or its person is gone.
            Err(Error::Denied(denial)) if denial.code == "invalid_grant" => {
                Verdict::Refused(format!("the identity provider refuses: {denial}"))
            }
            Err(Error::Token(Refusal::Subject)) => {
                Verdict::Refused("the identity provider names another person".to_owned())
            }
            Err(error) => Verdict::Unknown(error),
        })
    }

    /// Exchanges the refresh token for who the person is now (OpenID Connect Core 1.0, 12).
    async fn refresh(
        &self,
        session: &Session,
        provider: storage::oidc::Provider,
    ) -> Result<(super::Identity, Vec<u8>), Error> {
        let (now, party) = (self.now(), &self.inner.relying_party);
        let refresh_token = self.open_refresh_token(session);
        let refresh_token = refresh_token.ok_or(Error::Malformed("refresh token"))?;
        let client = self.client(provider)?;
        let known = party.known(&client.provider.issuer, now).await?;
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose()),
        ];
        let endpoint = &known.metadata.token_endpoint;
        let tokens: Tokens = party.ask("token", endpoint, &known, &client, &form).await?;
        let (known, id_token) = match &tokens.id_token {
            Some(text) => {
                let known = party.with_keys_for(known, text.expose(), now).await?;
                let expected = client.expected(now);
                let id_token = token::id_token(&known.keys, text.expose(), expected, None)?;
                (known, Some(id_token))
            }
            None => (known, None),
        };
        let identity = self
            .identity(&client, &known, &tokens, id_token.as_ref())
            .await?;
        if identity.subject != session.subject {
            return Err(Refusal::Subject.into());
        }
        let next = tokens.refresh_token.as_ref().unwrap_or(&refresh_token);
        Ok((identity, self.seal_refresh_token(session.place, next)))
    }

    /// Gives a person the groups and the role that her provider says. Returns what the audit says
    /// if that is a change.
    pub(crate) async fn follow(
        &self,
        change: &mut Change,
        user: &User,
        identity: &super::Identity,
        given: Role,
    ) -> Result<Option<Entry>, ApiError> {
        let groups = identity.labels();
        let known = storage::oidc::groups(change.connection(), user.id).await?;
        // One who keeps the installation stays an administrator, whatever her groups are.
        let given = if user.operator { Role::Admin } else { given };
        if groups == known && given == user.role {
            return Ok(None);
        }
        storage::oidc::update_groups(change.connection(), user.id, &groups).await?;
        if given != user.role {
            storage::user::update(change.connection(), user.id, &user.name, given).await?;
            ssh::revoke_changed(self, change, user).await?;
        }
        let groups: Vec<_> = groups.iter().map(model::name::Label::as_str).collect();
        Ok(Some(Entry {
            actor: Actor::Server,
            action: "oidc_user_changed",
            subject: format!(
                "user:{} {} {given} groups:{}",
                user.id,
                user.name,
                groups.join(",")
            ),
            org: Some(user.org),
        }))
    }

    /// Ends a session: its device is removed, and with it every device of the person that no
    /// provider answers for; her browsers are signed out, and sessions on other devices are asked
    /// about at once. With the session of a browser no device goes that is not refused itself: who
    /// signs out at the provider need not have left.
    pub(crate) async fn end_session(
        &self,
        session: &Session,
        reason: &str,
    ) -> Result<(), ApiError> {
        let mut change = self.change().await?;
        let now = change.now();
        let known = storage::oidc::session(change.connection(), session.place).await?;
        let is_same = |known: Session| {
            known.begun == session.begun && known.refresh_token == session.refresh_token
        };
        if !known.is_some_and(is_same) {
            // It ended, or began anew.
            return Ok(());
        }
        let user = storage::user::user(change.connection(), session.user).await?;
        let name = user.map(|user| user.name.to_string()).unwrap_or_default();
        let mut subject = format!("user:{} {name}", session.user);
        let (action, touched) = match session.place {
            Place::Device(_) => {
                subject.push_str(&self.remove_devices(&mut change, session).await?);
                storage::token::revoke_logins_of(change.connection(), now, session.user).await?;
                ("oidc_session_ended", Touched::Org(session.org))
            }
            Place::Browser(id) => {
                subject.push_str(&format!(" browser:{id}"));
                ("browser_session_ended", Touched::Nobody)
            }
        };
        let connection = change.connection();
        storage::browser::delete_of(connection, session.user).await?;
        storage::oidc::update_due_of(connection, session.user, now).await?;
        subject.push_str(": ");
        subject.push_str(reason);
        let entry = Entry {
            actor: Actor::Server,
            action,
            subject,
            org: Some(session.org),
        };
        self.commit(change, entry, touched).await
    }

    /// Removes the device of a session, and those of its person that no provider answers for.
    /// Returns what the audit says of them.
    async fn remove_devices(
        &self,
        change: &mut Change,
        session: &Session,
    ) -> Result<String, ApiError> {
        let (now, mut removed) = (change.now(), String::new());
        for node in storage::node::nodes_of_user(change.connection(), session.user).await? {
            let place = Place::Device(node.id);
            let other = storage::oidc::session(change.connection(), place).await?;
            if other.is_some_and(|other| other.place != session.place) {
                continue;
            }
            storage::node::delete(change.connection(), now, node.id).await?;
            ssh::revoke_removed(self, change, &node).await?;
            removed.push_str(&format!(" node:{} {}", node.id, node.name));
        }
        Ok(removed)
    }
}

/// Returns when a session ends that nobody can confirm.
fn unconfirmed_end(now: i64, id_token_expires: i64) -> i64 {
    id_token_expires.clamp(now, now + UNCONFIRMED_SECONDS_MAX)
}
