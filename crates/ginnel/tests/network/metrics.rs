//! Metrics, as a client over HTTP and Prometheus's own tool read them.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::world::{WAIT_MAX, World, lacks, serve_echo, wait_for};

#[test]
fn a_node_and_a_server_tell_what_they_count_over_http() {
    let mut world = World::with_flags(&["--metrics", "127.0.0.1:0"]);
    let server = world.server.as_mut().expect("it runs").until("metrics at ");
    world.login("laptop");
    let line = ["up", "--user", "--metrics", "127.0.0.1:0"];
    let (mut laptop, announced) = world.start("laptop", &line, "metrics at ");
    laptop.until("is ready");
    let _shed = world.machine("shed", "echo", 7000, serve_echo());
    let (node, gateway) = (authority(&announced), authority(&server));
    let before = count(&node, "ginnel_received_datagrams_total");
    world.run("laptop", &["ping", "shed", "-c", "3"]);
    wait_for("a tunnel in the metrics of both sides", || {
        count(&node, "ginnel_peers_up") == 1 && count(&gateway, "ginnel_peers_up") == 2
    });
    assert!(count(&node, "ginnel_received_datagrams_total") >= before + 3);
    assert!(count(&gateway, "ginnel_received_bytes_total") >= 3 * 60);
    assert_eq!(count(&node, "ginnel_control_reached"), 1);
    assert_eq!(
        count(
            &node,
            "ginnel_discards_total{layer=\"node\",reason=\"no_room\"}"
        ),
        0
    );
    // The agent's socket tells the same by the command.
    let printed = world.run("laptop", &["metrics"]);
    assert!(printed.contains("\nginnel_peers_up 1\n"), "{printed}");

    for (request, expected) in [
        ("GET /metrics", "200 OK"),
        ("HEAD /metrics", "200 OK"),
        ("POST /metrics", "405 Method Not Allowed"),
        ("GET /", "404 Not Found"),
    ] {
        let answer = ask(&node, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")),
            "{request}: {answer}"
        );
    }
}

#[test]
fn without_an_agent_there_is_nothing_to_measure() {
    let world = World::new();
    world.login("laptop");
    let ended = world.try_run("laptop", &["metrics"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("none runs"), "{}", ended.stderr);
}

#[test]
fn promtool_finds_no_fault_in_metrics_and_rules_and_each_rule_fires() {
    if lacks("promtool") {
        return;
    }
    let (world, _laptop) = World::with_laptop();
    world.run("laptop", &["ping", "laptop", "-c", "1"]);
    let metrics = world.run("laptop", &["metrics"]);
    assert!(metrics.contains("ginnel_peer_up{"), "{metrics}");
    promtool(&["check", "metrics"], &metrics);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = root.join("../../docs/metrics/alerts.yml");
    promtool(&["check", "rules", rules.to_str().expect("UTF-8")], "");
    // What the dashboard asks for, as rules: so promtool reads it too.
    let dashboard = std::fs::read(root.join("../../docs/metrics/dashboard.json"));
    let dashboard = serde_json::from_slice(&dashboard.expect("it is there")).expect("JSON");
    let mut asked = Vec::new();
    questions(&dashboard, &mut asked);
    assert!(asked.len() > 10, "{asked:?}");
    let mut text = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, question) in asked.iter().enumerate() {
        let question = question.replace("$__rate_interval", "5m");
        text += &format!("  - record: panel:{number}\n    expr: {question:?}\n");
    }
    let questions = world.path("dashboard.yml");
    std::fs::write(&questions, text).expect("a new file");
    promtool(&["check", "rules", questions.to_str().expect("UTF-8")], "");
    let tests = root.join("tests/network/alerts.yml");
    promtool(&["test", "rules", tests.to_str().expect("UTF-8")], "");
}

/// Collects what the panels of a dashboard ask Prometheus.
fn questions(part: &Value, asked: &mut Vec<String>) {
    match part {
        Value::Object(fields) => {
            asked.extend(
                fields
                    .get("expr")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields.values().for_each(|part| questions(part, asked));
        }
        Value::Array(parts) => parts.iter().for_each(|part| questions(part, asked)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Runs the tool, which must succeed and, when it checks metrics, has nothing to say.
fn promtool(line: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(line)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{line:?}: {text}");
    assert!(input.is_empty() || text.is_empty(), "{line:?}: {text}");
}

/// Returns the host and port of an announced address.
fn authority(announced: &str) -> String {
    let (_, url) = announced.split_once("http://").expect("a URL");
    url.trim_end_matches("/metrics").to_owned()
}

/// Asks for the metrics and returns the value of one.
#[track_caller]
fn count(authority: &str, series: &str) -> u64 {
    let answer = ask(authority, "GET /metrics");
    let value = answer
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {series}: {answer}"));
    value.trim().parse().expect("a whole number")
}

/// Makes one request and returns all of its answer.
fn ask(authority: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(authority).expect("it listens");
    stream.set_read_timeout(Some(WAIT_MAX)).expect("not zero");
    let request = format!("{request} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
