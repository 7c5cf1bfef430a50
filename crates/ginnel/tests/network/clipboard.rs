//! The clipboard of the person's display, from a node: by `-X` and by OSC 52, with a real X server
//! and a real editor.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use crate::{
    ssh::{log_in, world},
    world::{Process, World, finish, note, wait_for},
};

/// What the editor does with what is copied and pasted, and how it says that it has started.
const VIMRC: &str = r#"
set nocompatible
autocmd TextYankPost * call system('xclip -selection clipboard >/dev/null 2>&1', @")
let Osc52 = {-> ["\e]52;c;" .. system('base64 -w0', @") .. "\x07"]}
autocmd TextYankPost * call writefile(Osc52(), '/dev/tty', 'b')
nnoremap p :let @"=system('xclip -selection clipboard -o')<CR>""p
autocmd VimEnter * call writefile([], $MARKER)
"#;

/// An X server that lets in who has its cookie.
struct Display {
    name: String,
    authority: PathBuf,
    _server: Process,
}

impl Display {
    fn start(world: &World) -> Self {
        let authority = world.path("authority");
        let add = |name: &str| {
            let mut xauth = Command::new("xauth");
            xauth.arg("-f").arg(&authority).args(["add", name, "."]);
            let ended = finish(xauth.arg("00112233445566778899aabbccddeeff"));
            assert_eq!(ended.code, Some(0), "{ended:?}");
        };
        // Any entry lets in; which number the server takes is not known yet.
        add(":0");
        let mut server = Command::new("Xvfb");
        // It would start anew, and cut who is just connecting, whenever the last program leaves.
        server.args(["-noreset", "-displayfd", "1", "-nolisten", "tcp", "-auth"]);
        let mut server = world.spawn(server.arg(&authority));
        let name = format!(":{}", server.until("").trim());
        add(&name);
        Self {
            name,
            authority,
            _server: server,
        }
    }

    fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("DISPLAY", &self.name)
            .env("XAUTHORITY", &self.authority)
    }

    /// What a program of the person pastes.
    fn pasted(&self) -> String {
        let mut xclip = Command::new("xclip");
        finish(self.enter(xclip.args(["-selection", "clipboard", "-o"]))).stdout
    }

    /// A program of the person from which `text` was copied.
    fn copied(&self, text: &str) -> Child {
        let mut xclip = Command::new("xclip");
        xclip.args(["-selection", "clipboard", "-i", "-quiet"]);
        let xclip = self.enter(&mut xclip).stdin(Stdio::piped());
        let mut child = xclip.stderr(Stdio::null()).spawn().expect("start");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(text.as_bytes()).expect("it reads");
        child
    }
}

/// Tells whether every program is there, or says which is not.
pub(crate) fn are_installed(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|name| {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$0\"", name])
            .stdout(Stdio::null())
            .status();
        !found.expect("start sh").success()
    });
    if let Some(missing) = missing {
        note(&format!("skipped: `{missing}` is not installed"));
    }
    missing.is_none()
}

#[test]
fn a_copy_in_an_editor_at_a_node_fills_the_clipboard_here_and_back() {
    if !are_installed(&["Xvfb", "xauth", "xclip", "vim"]) {
        return;
    }
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let display = Display::start(&world);
    let path = |name: &str| world.path(name).to_str().expect("UTF-8").to_owned();
    fs::write(world.path("vimrc"), VIMRC).expect("a file");
    fs::write(world.path("text"), "from there\n").expect("a file");
    let line = format!(
        "MARKER={} exec vim -u {} -i NONE -n {}",
        path("started"),
        path("vimrc"),
        path("text")
    );
    let mut command = world.ginnel("laptop", &["ssh", "-X", "-t", "root@shed", &line]);
    let command = display.enter(&mut command).env("TERM", "xterm");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut editor = command.spawn().expect("start");
    let mut stdin = editor.stdin.take().expect("piped");
    let mut stdout = editor.stdout.take().expect("piped");
    let screen = thread::spawn(move || {
        let mut screen = Vec::new();
        // The end is where it was when the editor ended.
        drop(stdout.read_to_end(&mut screen));
        screen
    });
    wait_for("an editor", || world.path("started").exists());
    stdin.write_all(b"yy").expect("it reads");
    wait_for("a copy", || display.pasted() == "from there\n");
    let mut copied = display.copied("from here\n");
    wait_for("a copy here", || display.pasted() == "from here\n");
    stdin.write_all(b"Gp:wq\r").expect("it reads");
    let status = editor.wait().expect("it ends");
    let screen = screen.join().expect("it reads to the end");
    let screen = String::from_utf8_lossy(&screen);
    assert!(status.success(), "{screen}");
    let text = fs::read_to_string(world.path("text")).expect("a file");
    assert_eq!(text, "from there\nfrom here\n");
    // base64 of what was copied there, as the terminal of the person gets it.
    assert!(
        screen.contains("\x1b]52;c;ZnJvbSB0aGVyZQo=\x07"),
        "{screen}"
    );
    copied.kill().expect("it lives");
    copied.wait().expect("it ends");
}

#[test]
fn a_display_is_there_when_it_is_forwarded_and_only_then() {
    if !are_installed(&["Xvfb", "xauth", "xclip"]) {
        return;
    }
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    let display = Display::start(&world);
    let mut copied = display.copied("mine");
    wait_for("a copy", || display.pasted() == "mine");
    let paste = "xclip -selection clipboard -o";
    let mut with = world.ginnel("laptop", &["ssh", "-X", "root@shed", paste]);
    let ended = finish(display.enter(&mut with));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "mine"));
    // Another account of the node, which cannot read the cookie, is not led on.
    let line = format!("XAUTHORITY=/dev/null {paste}");
    let mut forged = world.ginnel("laptop", &["ssh", "-X", "root@shed", &line]);
    let ended = finish(display.enter(&mut forged));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    let line = ["ssh", "root@shed", "echo -n \"$DISPLAY\""];
    let ended = finish(display.enter(&mut world.ginnel("laptop", &line)));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    let mut without = world.ginnel("laptop", &["ssh", "-X", "root@shed", "true"]);
    let ended = finish(without.env_remove("DISPLAY"));
    assert_eq!(ended.code, Some(255), "{ended:?}");
    assert!(ended.stderr.contains("no display to forward"), "{ended:?}");
    copied.kill().expect("it lives");
    copied.wait().expect("it ends");
}

#[test]
fn a_clipboard_sequence_passes_a_terminal_as_it_is() {
    let Some((world, _laptop, _shed)) = world() else {
        return;
    };
    // As much as terminals take: 100,000 bytes of base64 (xterm's limit is far lower).
    let line = "printf '\\033]52;c;'; head -c 75000 /dev/zero | base64 -w0; printf '\\007'";
    let ended = world.try_run("laptop", &["ssh", "-t", "root@shed", line]);
    let expected = format!("\x1b]52;c;{}\x07", "A".repeat(100_000));
    assert!(ended.stdout == expected, "{} bytes", ended.stdout.len());
    // A question for the clipboard is the terminal's to answer or not.
    let ended = log_in(&world, "root@shed", "printf '\\033]52;c;?\\007'");
    assert_eq!(ended.stdout, "\x1b]52;c;?\x07");
}
