//! What is said about rules: who may reach what, and why.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::{
    id::RuleId,
    name::Label,
    policy::{Question, Selector, Traffic, Wanted},
};

/// Most questions of one request.
pub const QUESTIONS_MAX: usize = 50;

/// A rule of an organisation: those may send this to these.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Rule {
    /// Its id.
    pub id: RuleId,
    /// Its organisation.
    #[schema(value_type = String)]
    pub org: Label,
    /// Who may send.
    #[schema(value_type = Vec<String>)]
    pub from: Vec<Selector>,
    /// Who may be reached.
    #[schema(value_type = Vec<String>)]
    pub to: Vec<Selector>,
    /// What may be sent; to a service only its own port, whatever stands here.
    #[schema(value_type = Vec<String>)]
    pub traffic: Vec<Traffic>,
    /// What it is for.
    pub comment: String,
    /// When it was added.
    pub created: Timestamp,
}

/// Adds a rule.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct NewRule {
    /// The organisation; that of the asking device if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// Who may send, 1 to 64 selectors, none of them a service.
    #[schema(value_type = Vec<String>)]
    pub from: Vec<Selector>,
    /// Who may be reached, 1 to 64 selectors.
    #[schema(value_type = Vec<String>)]
    pub to: Vec<Selector>,
    /// What may be sent, 1 to 64 items; everything if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub traffic: Option<Vec<Traffic>>,
    /// What it is for, 255 bytes at most.
    #[serde(default)]
    pub comment: String,
}

/// Changes a rule; what is absent stays.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct RuleChange {
    /// Who may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub from: Option<Vec<Selector>>,
    /// Who may be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub to: Option<Vec<Selector>>,
    /// What may be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub traffic: Option<Vec<Traffic>>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// Asks who may reach what.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Questions {
    /// The organisation; that of the asking node or device if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org: Option<Label>,
    /// The questions, at most 50.
    pub questions: Vec<Question>,
}

/// One answer to each question, in their order.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Answers {
    /// The answers.
    pub answers: Vec<Answer>,
}

/// Whether some nodes may reach others, and an example of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Answer {
    /// Whether they may.
    pub verdict: Verdict,
    /// Two nodes of which it is so; if only some may, two that may not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<Example>,
}

/// Whether some nodes may reach others.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Each of them may reach each.
    Allowed,
    /// None of them may reach any.
    Refused,
    /// Some may, some may not.
    Partly,
    /// There is nobody who would send.
    NobodySends,
    /// There is nobody who would be reached.
    NobodyReached,
}

/// Two nodes, and what the rules say of them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct Example {
    /// Who sends.
    #[schema(value_type = String)]
    pub from: Label,
    /// Who is reached.
    #[schema(value_type = String)]
    pub to: Label,
    /// With what.
    #[schema(value_type = String)]
    pub wanted: Wanted,
    /// The first rule that allows it; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
}
