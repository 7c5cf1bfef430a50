//! `ginnel policy`: rules of who may reach what, and questions about them.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use control::{Permission, Reach, permissions};
use model::{
    api::{
        Answer, Example, ListQuery, NewRule, QUESTIONS_MAX, Questions, Rule, RuleChange, Verdict,
    },
    id::RuleId,
    name::Label,
    policy::{Assertion, Question, Selector, Traffic, Wanted, Whom},
};
use serde::Serialize;

use crate::{
    admin::{all, client},
    api::Client,
    cli::Global,
    enrolment::State,
    remedy::Advise as _,
    terminal::{self, Column},
};

/// Say who may reach what, and ask why
///
/// What no rule allows is refused, at the gateway and at the node that is reached, and a change
/// is in force within a second: open connections that are allowed go on, others are cut. A new
/// organisation has one rule: every machine serves everybody.
///
/// FROM and TO are selectors: `*`, `machines`, `user:NAME`, `role:admin|developer|guest`,
/// `group:NAME`, `node:NAME`, `tag:NAME`, and for TO also `service:NAME`.
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
  ginnel policy list
  ginnel policy add --from role:developer --to tag:web --allow 22,443,8000-8100
  ginnel policy add --from user:alice --to service:db --comment 'until the migration is done'
  ginnel policy set 3 --allow all
  ginnel policy explain laptop db 5432
  ginnel policy matrix
  ginnel policy test policy.txt       # lines such as `user:alice may not reach db:22`";

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the rules
    List,
    /// Show one rule
    Show {
        /// Its id
        rule: i64,
    },
    /// Add a rule
    Add {
        /// Who may send; several are separated by commas
        #[arg(long, value_delimiter = ',', required = true, value_name = "SELECTOR")]
        from: Vec<Selector>,
        /// Who may be reached; several are separated by commas
        #[arg(long, value_delimiter = ',', required = true, value_name = "SELECTOR")]
        to: Vec<Selector>,
        /// What: `all`, `ping`, `tcp`, `udp`, or ports such as `22`, `53/udp`, `8000-8100`
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "all",
            value_name = "TRAFFIC"
        )]
        allow: Vec<Traffic>,
        /// What the rule is for
        #[arg(
            long,
            default_value = "",
            value_name = "TEXT",
            hide_default_value = true
        )]
        comment: String,
    },
    /// Change a rule; what is not given stays
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// Its id
        rule: i64,
        /// Who may send
        #[arg(long, value_delimiter = ',', value_name = "SELECTOR", group = "change")]
        from: Option<Vec<Selector>>,
        /// Who may be reached
        #[arg(long, value_delimiter = ',', value_name = "SELECTOR", group = "change")]
        to: Option<Vec<Selector>>,
        /// What
        #[arg(long, value_delimiter = ',', value_name = "TRAFFIC", group = "change")]
        allow: Option<Vec<Traffic>>,
        /// What the rule is for
        #[arg(long, value_name = "TEXT", group = "change")]
        comment: Option<String>,
    },
    /// Remove a rule: what only it allowed is cut
    Remove {
        /// Its id
        rule: i64,
    },
    /// Say whether FROM may reach TO, and by which rule
    ///
    /// FROM and TO are names of nodes or people, or selectors. Exits with 1 when it is refused.
    Explain {
        /// Who sends
        from: Whom,
        /// Who is reached
        to: Whom,
        /// With what: `22`, `53/udp`, `ping` [default: a ping; for a service its own port]
        wanted: Option<Wanted>,
    },
    /// Show what each role may do at the control plane, route by route
    ///
    /// `own org` goes to what belongs to the organisation, `own node` to what belongs to the device
    /// or machine that asks.
    Matrix,
    /// Hold the rules to a file of assertions
    ///
    /// A line is `FROM may reach TO[:PORT[/udp]]` or `FROM may not reach TO[:PORT[/udp]]`; empty
    /// lines and lines that begin with # say nothing. Exits with 1 when one does not hold.
    Test {
        /// The file
        file: PathBuf,
    },
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let org = args.org;
    match args.action {
        Action::List => {
            let query = ListQuery {
                org,
                ..ListQuery::default()
            };
            let client = reader(global)?;
            let rules = all(query, async |query| client.rules(query).await).await?;
            terminal::list(&rules, COLUMNS, global.json)?;
        }
        Action::Show { rule } => {
            let rule = reader(global)?.rule(RuleId(rule)).await?;
            terminal::show(&rule, COLUMNS, global.json)?;
        }
        Action::Add {
            from,
            to,
            allow,
            comment,
        } => {
            let request = NewRule {
                org,
                from,
                to,
                traffic: Some(allow),
                comment,
            };
            let rule = client(global)?.add_rule(&request).await?;
            terminal::show(&rule, COLUMNS, global.json)?;
        }
        Action::Set {
            rule,
            from,
            to,
            allow,
            comment,
        } => {
            let request = RuleChange {
                from,
                to,
                traffic: allow,
                comment,
            };
            let rule = client(global)?.change_rule(RuleId(rule), &request).await?;
            terminal::show(&rule, COLUMNS, global.json)?;
        }
        Action::Remove { rule } => {
            client(global)?.remove_rule(RuleId(rule)).await?;
            terminal::done(format_args!("rule {rule} is removed"), global.json)?;
        }
        Action::Explain { from, to, wanted } => {
            let question = Question { from, to, wanted };
            return explain(&reader(global)?, org, question, global.json).await;
        }
        Action::Matrix => terminal::list(&permissions(), MATRIX, global.json)?,
        Action::Test { file } => return test(&reader(global)?, org, &file, global.json).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Connects as the person who has signed in here, else as this node, which may read its rules.
fn reader(global: &Global) -> Result<Client> {
    let state = State::locate(global)?;
    let enrolment = state.enrolment()?;
    let token = match state.session()? {
        Some(session) => session.token,
        None => enrolment.token,
    };
    Ok(Client::with_token(&enrolment.url, token)?)
}

async fn explain(
    client: &Client,
    org: Option<Label>,
    question: Question,
    as_json: bool,
) -> Result<ExitCode> {
    let questions = vec![question.clone()];
    let answers = client.answers(&Questions { org, questions }).await?.answers;
    let answer = answers
        .into_iter()
        .next()
        .context("server: it gave no answer to the question")?;
    let allowed = match answer.verdict {
        Verdict::Allowed => true,
        Verdict::Refused | Verdict::Partly => false,
        Verdict::NobodySends | Verdict::NobodyReached => {
            let whom = match answer.verdict {
                Verdict::NobodySends => &question.from,
                Verdict::NobodyReached | Verdict::Allowed | Verdict::Refused | Verdict::Partly => {
                    &question.to
                }
            };
            return Err(anyhow::anyhow!("there is no node for `{whom}`"))
                .remedy("see `ginnel node list` and `ginnel user list`");
        }
    };
    if as_json {
        terminal::json(&answer)?;
    } else {
        terminal::line(sentence(&answer))?;
        let rule = answer.example.and_then(|example| example.rule);
        if let Some(rule) = rule {
            let rule = client.rule(rule).await?;
            terminal::line(in_words(&rule))?;
        }
    }
    Ok(ExitCode::from(u8::from(!allowed)))
}

/// What one line of a file of assertions came to.
#[derive(Serialize)]
struct Outcome {
    line: usize,
    assertion: String,
    holds: bool,
    answer: Answer,
}

async fn test(
    client: &Client,
    org: Option<Label>,
    file: &std::path::Path,
    as_json: bool,
) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("read `{}`", file.display()))
        .remedy("give a file of assertions, one a line")?;
    let assertions = assertions(&text).with_context(|| format!("`{}`", file.display()))?;
    ensure!(
        !assertions.is_empty(),
        "`{}` asserts nothing",
        file.display()
    );
    let mut outcomes = Vec::new();
    for chunk in assertions.chunks(QUESTIONS_MAX) {
        let questions: Vec<_> = chunk.iter().map(|(_, it)| it.question.clone()).collect();
        let request = Questions {
            org: org.clone(),
            questions,
        };
        let answers = client.answers(&request).await?.answers;
        ensure!(
            answers.len() == chunk.len(),
            "server: it gave {} answers to {} questions",
            answers.len(),
            chunk.len()
        );
        let pairs = chunk.iter().zip(answers);
        outcomes.extend(pairs.map(|((line, assertion), answer)| Outcome {
            line: *line,
            assertion: assertion.to_string(),
            holds: holds(assertion, &answer),
            answer,
        }));
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.holds).count();
    if as_json {
        terminal::json(&outcomes)?;
    } else {
        for outcome in outcomes.iter().filter(|outcome| !outcome.holds) {
            terminal::line(format_args!(
                "line {}: {}: {}",
                outcome.line,
                outcome.assertion,
                sentence(&outcome.answer)
            ))?;
        }
        terminal::line(format_args!(
            "{} of {} assertions hold",
            outcomes.len() - failed,
            outcomes.len()
        ))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Tells whether an answer is what was asserted; of nobody nothing can be.
fn holds(assertion: &Assertion, answer: &Answer) -> bool {
    match answer.verdict {
        Verdict::Allowed => assertion.may,
        Verdict::Refused => !assertion.may,
        Verdict::Partly | Verdict::NobodySends | Verdict::NobodyReached => false,
    }
}

/// Parses a file of assertions into its lines, counted from 1.
fn assertions(text: &str) -> Result<Vec<(usize, Assertion)>> {
    let mut assertions = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        let assertion = text.parse().with_context(|| format!("line {line}"))?;
        assertions.push((line, assertion));
    }
    Ok(assertions)
}

fn sentence(answer: &Answer) -> String {
    let pair = |example: &Option<Example>| match example {
        Some(Example {
            from, to, wanted, ..
        }) => format!("{from} to {to} with {wanted}"),
        None => "no two nodes".to_owned(),
    };
    let pair = pair(&answer.example);
    match answer.verdict {
        Verdict::Allowed => {
            let rule = answer.example.as_ref().and_then(|example| example.rule);
            match rule {
                Some(rule) => format!("allowed: {pair}, by rule {rule}"),
                None => format!("allowed: {pair}"),
            }
        }
        Verdict::Refused => format!("refused: no rule allows {pair}"),
        Verdict::Partly => format!("refused for some: no rule allows {pair}"),
        Verdict::NobodySends => "nobody would send: no node is meant".to_owned(),
        Verdict::NobodyReached => "nobody would be reached: no node is meant".to_owned(),
    }
}

fn in_words(rule: &Rule) -> String {
    let Rule { id, comment, .. } = rule;
    let (from, to, allow) = (joined(&rule.from), joined(&rule.to), joined(&rule.traffic));
    let comment = if comment.is_empty() {
        String::new()
    } else {
        format!("  # {comment}")
    };
    format!("rule {id}: --from {from} --to {to} --allow {allow}{comment}")
}

fn joined(items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(",")
}

const COLUMNS: &[Column<Rule>] = &[
    ("ID", |rule| rule.id.to_string()),
    ("ORG", |rule| rule.org.to_string()),
    ("FROM", |rule| joined(&rule.from)),
    ("TO", |rule| joined(&rule.to)),
    ("ALLOW", |rule| joined(&rule.traffic)),
    ("COMMENT", |rule| rule.comment.clone()),
];

const MATRIX: &[Column<Permission>] = &[
    ("ROUTE", |line| format!("{} {}", line.method, line.path)),
    ("OPERATOR", |line| reach(line.operator)),
    ("ADMIN", |line| reach(line.admin)),
    ("DEVELOPER", |line| reach(line.developer)),
    ("GUEST", |line| reach(line.guest)),
    ("NODE", |line| reach(line.node)),
    ("GATEWAY", |line| reach(line.gateway)),
];

fn reach(reach: Reach) -> String {
    let word = match reach {
        Reach::Nothing => "-",
        Reach::OwnNode => "own node",
        Reach::OwnOrg => "own org",
        Reach::Everything => "everything",
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_assertions_is_read_line_by_line() {
        let text = "# who works on it\n\nuser:alice may reach db:5432\n  \
                    tag:ci may not reach db:22/tcp  # never\n";
        let lines = assertions(text).expect("well-formed");
        let texts: Vec<_> = lines
            .iter()
            .map(|(line, assertion)| format!("{line} {assertion}"))
            .collect();
        assert_eq!(
            texts,
            [
                "3 user:alice may reach db:5432/tcp",
                "4 tag:ci may not reach db:22/tcp"
            ]
        );
        let error = assertions("a may reach b\na can reach b").expect_err("not a form");
        assert!(
            format!("{error:#}").starts_with("line 2: an assertion is"),
            "{error:#}"
        );
    }
}
