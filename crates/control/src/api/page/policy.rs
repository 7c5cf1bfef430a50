//! The rules, and what they say of two nodes.

use axum::{http::Method, response::Response};
use maud::{Markup, html};
use model::{
    api::{Answer, Answers, Page, Rule, Verdict},
    id::RuleId,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Fault, Form, ITEMS_MAX, Visit,
    layout::{self, Section},
    then,
};
use crate::api::{
    extract::{Asked, Named},
    permission::Action,
};

/// What is asked about the rules.
#[derive(Default, Deserialize)]
pub(super) struct Query {
    #[serde(default)]
    org: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    to: String,
    #[serde(default)]
    wanted: String,
    #[serde(default)]
    after: String,
}

/// What a selector may say.
const SELECTORS: &str = "Such as * user:alice role:developer group:ops node:db tag:prod machines \
                         site:paris; several separated by blanks.";

/// Lists the rules, and answers a question.
pub(super) async fn list(visit: Visit, Asked(query): Asked<Query>) -> Result<Response, Fault> {
    let org = if query.org.is_empty() {
        visit.org.as_str()
    } else {
        &query.org
    };
    let part = [("org", org), ("after", &query.after), ("limit", ITEMS_MAX)];
    let rules: Page<Rule> = visit.get("/v1/rules", &part).await?;
    let answer = if query.from.is_empty() && query.to.is_empty() {
        None
    } else {
        Some(visit.answer(org, &query).await?)
    };
    let next = super::query(&[("org", &query.org)]);
    let titles = ["Rule", "From", "To", "Traffic", "Comment", "Change"];
    let rows = html! {
        table {
            caption { "What no rule of " (org) " allows is refused." }
            (layout::titles(&titles))
            tbody {
                @for rule in &rules.items { (row(&visit, rule)) }
            }
        }
        (layout::more("/ui/policy", &next, rules.next))
    };
    let main = html! {
        (explain(&visit, &query, answer.as_ref()))
        h2 { "Rules" }
        (layout::live("rules", &rows))
        @if visit.may(Action::ChangePolicy) {
            h2 { "Add a rule" }
            form method="post" action="/ui/policy" {
                (layout::proof(&visit))
                (layout::field("From", "from", "", SELECTORS))
                (layout::field("To", "to", "", "The same, or service:web."))
                (layout::field("Traffic", "traffic", "", "Such as 22/tcp 53/udp ping; empty: all."))
                (layout::field("Comment", "comment", "", ""))
                (layout::org_field(&visit))
                button type="submit" { "Add" }
            }
        }
    };
    Ok(visit.page(Section::Policy, &main))
}

impl Visit {
    async fn answer(&self, org: &str, query: &Query) -> Result<Answer, Fault> {
        let wanted = Some(&query.wanted).filter(|wanted| !wanted.is_empty());
        let question = json!({ "from": query.from, "to": query.to, "wanted": wanted });
        let body = json!({ "org": org, "questions": [question] });
        let path = "/v1/policy/questions";
        let answers: Answers = self.send(Method::POST, path, &body).await?;
        let answer = answers.answers.into_iter().next();
        answer.ok_or_else(|| crate::api::error::ApiError::not_found().into())
    }
}

fn explain(visit: &Visit, query: &Query, answer: Option<&Answer>) -> Markup {
    html! {
        h2 { "May they?" }
        form.row method="get" action="/ui/policy" {
            (layout::field("From", "from", &query.from, ""))
            (layout::field("To", "to", &query.to, ""))
            (layout::field("With", "wanted", &query.wanted, ""))
            @if visit.user.operator {
                (layout::field("Organisation", "org", &query.org, ""))
            }
            button type="submit" { "Explain" }
        }
        p.note { "From and to as in rules or by the name of a node; with 22/tcp, or empty: ping." }
        @if let Some(answer) = answer { (verdict(answer)) }
    }
}

fn verdict(answer: &Answer) -> Markup {
    html! {
        p role="status" {
            @match answer.verdict {
                Verdict::Allowed => strong.good { "Yes." },
                Verdict::Refused => strong.bad { "No." },
                Verdict::Partly => strong.bad { "Some may, some may not." },
                Verdict::NobodySends => strong { "There is nobody who would send." },
                Verdict::NobodyReached => strong { "There is nobody who would be reached." },
            }
            @if let Some(example) = &answer.example {
                " " (example.from) " to " (example.to) " with " (example.wanted) ": "
                @match example.rule {
                    Some(rule) => { "rule " (rule) " allows it." },
                    None => "no rule allows it.",
                }
            }
        }
    }
}

fn row(visit: &Visit, rule: &Rule) -> Markup {
    let path = format!("/ui/policy/{}/remove", rule.id);
    let sure = html! { p { "What only rule " (rule.id) " allows is cut at once." } };
    html! {
        tr {
            td data-label="Rule" { (rule.id) }
            td data-label="From" { (layout::joined(&rule.from)) }
            td data-label="To" { (layout::joined(&rule.to)) }
            td data-label="Traffic" { (layout::joined(&rule.traffic)) }
            td data-label="Comment" { (rule.comment) }
            td data-label="Change" {
                @if visit.may(Action::ChangePolicy) {
                    div { (layout::folded(visit, "Remove", &path, "Remove for good", &sure)) }
                }
            }
        }
    }
}

/// Adds a rule.
pub(super) async fn add(visit: Visit, form: Form) -> Result<Response, Fault> {
    let traffic = Some(form.items("traffic")).filter(|items| !items.is_empty());
    let body = json!({
        "from": form.items("from"), "to": form.items("to"), "traffic": traffic,
        "comment": form.text("comment"), "org": form.some("org"),
    });
    visit.send::<Rule>(Method::POST, "/v1/rules", &body).await?;
    Ok(then("/ui/policy"))
}

/// Removes a rule.
pub(super) async fn remove(
    visit: Visit,
    Named(id): Named<RuleId>,
    _form: Form,
) -> Result<Response, Fault> {
    visit.delete(&format!("/v1/rules/{id}")).await?;
    Ok(then("/ui/policy"))
}
