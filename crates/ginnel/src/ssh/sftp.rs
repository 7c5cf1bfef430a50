//! `ginnel sftp`: files at a node by commands, typed or in a batch.

mod words;

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    client::Offers,
    files::{
        self, Files, last_name,
        transfer::{self, Transfer},
    },
    login::{Target, Way, log_in},
};
use crate::{cli::Global, remedy::Advise as _, terminal};

/// Handle files at a node
///
/// Reads commands from the terminal or from stdin; `help` lists them. A file appears under its
/// name only once it is whole. In a batch the first command that fails ends it, unless a `-`
/// stands before the command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The node, and the account there [default: the name of your own account]
    #[arg(value_name = "[USER@]HOST")]
    target: Target,

    /// Read the commands from FILE, or from stdin if it is `-`
    #[arg(short, long, value_name = "FILE")]
    batch: Option<PathBuf>,

    /// Do not tell how far it is
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    way: Way,
}

const EXAMPLES: &str = "\
Examples:
  ginnel sftp root@db
  echo 'put site.tar /srv/' | ginnel sftp -b - web";

const HELP: &str = "\
ls [-l] [PATH]          list a directory
cd PATH, pwd            the directory there
lcd PATH, lpwd          the directory here
get [-r] PATH [LOCAL]   copy from there
put [-r] LOCAL [PATH]   copy to there
mkdir PATH, rmdir PATH  make or remove a directory
rm PATH                 remove a file
rename PATH PATH        give a file another name
help, exit              this, and the end";

/// Bytes of one line.
const LINE_MAX: u64 = 64 * 1024;

/// Where both sides are.
struct Session<'a> {
    files: &'a Files,
    quiet: bool,
    there: String,
    here: PathBuf,
}

/// What a line was.
#[derive(Debug, Eq, PartialEq)]
enum Next {
    Go,
    Exit,
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let batch = match &args.batch {
        Some(path) if path.as_os_str() != "-" => {
            let text = fs::read_to_string(path);
            let text = text.with_context(|| format!("read `{}`", path.display()))?;
            Some(text)
        }
        Some(_) | None => None,
    };
    let connection = log_in(&args.target, args.way, Offers::default(), global).await?;
    let files = Files::open(&connection).await?;
    let mut session = Session {
        files: &files,
        quiet: args.quiet,
        there: files.real(".").await?,
        here: std::env::current_dir().context("find the own directory")?,
    };
    match batch {
        Some(text) => {
            for line in text.lines() {
                if session.batched(line).await? == Next::Exit {
                    break;
                }
            }
        }
        None => session.read(args.batch.is_some()).await?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Session<'_> {
    /// Reads lines from stdin; a terminal gets a prompt, and goes on after what failed.
    async fn read(&mut self, is_batch: bool) -> Result<()> {
        let prompt = !is_batch && io::stdin().is_terminal();
        loop {
            if prompt {
                let mut stderr = io::stderr().lock();
                write!(stderr, "sftp> ")?;
                stderr.flush()?;
            }
            let line = tokio::task::spawn_blocking(|| {
                let mut line = String::new();
                let mut stdin = io::Read::take(io::stdin().lock(), LINE_MAX);
                stdin.read_line(&mut line).map(|length| (length, line))
            });
            let (length, line) = line.await?.context("read stdin")?;
            if length == 0 {
                return Ok(());
            }
            let next = if prompt {
                let next = self.handle(line.trim()).await;
                next.unwrap_or_else(|error| {
                    // It is told, and the person goes on.
                    let _goes_on = terminal::report(&error, false);
                    Next::Go
                })
            } else {
                self.batched(line.trim()).await?
            };
            if next == Next::Exit {
                return Ok(());
            }
        }
    }

    /// Handles a line of a batch, which may say that it may fail.
    async fn batched(&mut self, line: &str) -> Result<Next> {
        let line = line.trim();
        match line.strip_prefix('-') {
            Some(line) => {
                let next = self.handle(line).await;
                Ok(next.unwrap_or_else(|error| {
                    let _goes_on = terminal::report(&error, false);
                    Next::Go
                }))
            }
            None => self.handle(line).await.with_context(|| format!("`{line}`")),
        }
    }

    async fn handle(&mut self, line: &str) -> Result<Next> {
        let words = words::split(line)?;
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words.first().is_none_or(|word| word.starts_with('#')) {
            return Ok(Next::Go);
        }
        let flag = match words.get(1) {
            Some(word) if word.len() == 2 && word.starts_with('-') => Some(words.remove(1)),
            Some(_) | None => None,
        };
        match (words.as_slice(), flag) {
            (["exit" | "quit" | "bye"], None) => return Ok(Next::Exit),
            (["help" | "?"], None) => terminal::line(HELP)?,
            (["pwd"], None) => terminal::line(self.there.escape_debug())?,
            (["lpwd"], None) => terminal::line(self.here.display())?,
            (["ls"], None | Some("-l")) => self.list(".", flag.is_some()).await?,
            (["ls", path], None | Some("-l")) => self.list(path, flag.is_some()).await?,
            (["cd", path], None) => self.enter(path).await?,
            (["lcd", path], None) => {
                let here = self.here.join(path).canonicalize();
                self.here = here.with_context(|| format!("`{path}`"))?;
            }
            (["get", path], None | Some("-r")) => self.get(path, ".", flag.is_some()).await?,
            (["get", path, to], None | Some("-r")) => self.get(path, to, flag.is_some()).await?,
            (["put", path], None | Some("-r")) => self.put(path, ".", flag.is_some()).await?,
            (["put", path, to], None | Some("-r")) => self.put(path, to, flag.is_some()).await?,
            (["mkdir", path], None) => self.files.make_directory(&self.place(path)).await?,
            (["rmdir", path], None) => self.files.remove_directory(&self.place(path)).await?,
            (["rm", path], None) => self.files.remove(&self.place(path)).await?,
            (["rename", from, to], None) => {
                self.files
                    .rename(&self.place(from), &self.place(to))
                    .await?;
            }
            _ => return Err(anyhow!("`{line}` is no command")).remedy("`help` lists them"),
        }
        Ok(Next::Go)
    }

    async fn list(&self, path: &str, is_long: bool) -> Result<()> {
        let path = self.place(path);
        for entry in self.files.list(&path).await? {
            if is_long {
                // A name in it ends no line.
                terminal::line(&*terminal::plain(&entry.line))?;
            } else {
                let end = if entry.attributes.is_dir() { "/" } else { "" };
                terminal::line(format_args!("{}{end}", entry.name.escape_debug()))?;
            }
        }
        Ok(())
    }

    async fn enter(&mut self, path: &str) -> Result<()> {
        let there = self.files.real(&self.place(path)).await?;
        if !self.files.is_directory(&there).await? {
            bail!("`{path}` is not a directory");
        }
        self.there = there;
        Ok(())
    }

    async fn get(&self, path: &str, to: &str, is_recursive: bool) -> Result<()> {
        let from = self.place(path);
        let name = last_name(&from).context("name the directory instead of `.` or `..`")?;
        let to = transfer::within(&self.here.join(to), name)?;
        let transfer = Transfer::new(self.files, is_recursive, self.quiet);
        interruptible(&transfer, transfer.download(&from, &to)).await
    }

    async fn put(&self, path: &str, to: &str, is_recursive: bool) -> Result<()> {
        let from: &Path = &self.here.join(path);
        let name = from.file_name().and_then(|name| name.to_str());
        let name = name.context("name the directory instead of `.` or `..`")?;
        let mut to = self.place(to);
        if self.files.is_directory(&to).await? {
            to = files::join(&to, name);
        }
        let transfer = Transfer::new(self.files, is_recursive, self.quiet);
        interruptible(&transfer, transfer.upload(from, &to)).await
    }

    /// Returns where `path` is, which begins in the directory there.
    fn place(&self, path: &str) -> String {
        match path {
            "." => self.there.clone(),
            path if path.starts_with('/') => path.to_owned(),
            path => files::join(&self.there, path),
        }
    }
}

/// Ctrl-C ends what is being copied, and not the session.
async fn interruptible(
    transfer: &Transfer<'_>,
    copying: impl Future<Output = Result<()>>,
) -> Result<()> {
    let copied = tokio::select! {
        copied = copying => copied,
        interrupted = terminal::interrupted() => match interrupted {
            Ok(()) => Err(anyhow!("interrupted")),
            Err(error) => Err(error.into()),
        },
    };
    transfer.abandon().await;
    copied
}
