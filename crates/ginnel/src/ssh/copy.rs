//! `ginnel cp`: files from and to a node.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    client::Offers,
    files::{
        self, Files, last_name,
        transfer::{self, Transfer},
    },
    login::{MalformedTarget, Target, Way, log_in},
};
use crate::{
    cli::Global,
    remedy::{Advise as _, advise},
    terminal,
};

/// Copy files from and to a node
///
/// One side is at a node: `[USER@]HOST:PATH`, where a path that does not begin with `/` begins in
/// the home directory. A file appears under its name only once it is whole, and takes the place of
/// one that was there. A path of this machine with a colon is written `./a:b`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What to copy
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<Place>,

    /// Where to; a directory, or the new name
    #[arg(value_name = "DST")]
    destination: Place,

    /// Take directories with all that is in them
    #[arg(short, long)]
    recursive: bool,

    /// Do not tell how far it is
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    way: Way,
}

const EXAMPLES: &str = "\
Examples:
  ginnel cp root@db:/etc/hosts .
  ginnel cp -r site/ web:/srv/www
  ginnel cp one two web:";

/// One side of a copy.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    /// At this machine.
    Here(PathBuf),
    /// At a node.
    There(Target, String),
}

/// Which way the files go.
#[derive(Debug, Eq, PartialEq)]
enum Direction {
    Up(Vec<PathBuf>, Target, String),
    Down(Target, Vec<String>, PathBuf),
}

/// Runs the command.
pub(crate) async fn run(args: Args, global: &Global) -> Result<ExitCode> {
    let direction = direction(args.sources, args.destination)?;
    let target = match &direction {
        Direction::Up(_, target, _) | Direction::Down(target, _, _) => target,
    };
    let connection = log_in(target, args.way, Offers::default(), global).await?;
    let files = Files::open(&connection).await?;
    let transfer = Transfer::new(&files, args.recursive, args.quiet);
    let copied = tokio::select! {
        copied = copy(&direction, &files, &transfer) => copied,
        interrupted = terminal::interrupted() => match interrupted {
            Ok(()) => Err(anyhow::anyhow!("interrupted")),
            Err(error) => Err(error.into()),
        },
    };
    transfer.abandon().await;
    copied?;
    Ok(ExitCode::SUCCESS)
}

async fn copy(direction: &Direction, files: &Files, transfer: &Transfer<'_>) -> Result<()> {
    match direction {
        Direction::Up(from, _, to) => {
            let into = files.is_directory(to).await?;
            ensure_directory(into, from.len(), to)?;
            for from in from {
                let to = if into {
                    files::join(to, name_here(from)?)
                } else {
                    to.clone()
                };
                transfer.upload(from, &to).await?;
            }
        }
        Direction::Down(_, from, to) => {
            ensure_directory(to.is_dir(), from.len(), &to.display().to_string())?;
            for from in from {
                let name = match last_name(from) {
                    Some(name) => name.to_owned(),
                    None => real_name(files, from).await?,
                };
                let to = transfer::within(to, &name)?;
                transfer.download(from, &to).await?;
            }
        }
    }
    Ok(())
}

fn ensure_directory(is_directory: bool, sources: usize, name: &str) -> Result<()> {
    ensure!(
        is_directory || sources == 1,
        "`{name}` is not a directory, and there are {sources} sources"
    );
    Ok(())
}

/// The name of a directory that was written as `.` or the like.
async fn real_name(files: &Files, path: &str) -> Result<String> {
    let real = files.real(path).await?;
    let name = last_name(&real).context("the root has no name to copy it under")?;
    Ok(name.to_owned())
}

fn name_here(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.with_context(|| format!("`{}` has no name to copy it under", path.display()))
        .remedy("name the directory instead of `.` or `..`")
}

fn direction(sources: Vec<Place>, destination: Place) -> Result<Direction> {
    let mixed = || {
        advise(
            "a copy goes from this machine to one node, or from one node to this machine",
            "copy between nodes through this machine, in two steps; a path of this machine with a \
             colon is written ./a:b",
        )
    };
    match destination {
        Place::There(target, path) => {
            let from = sources.into_iter().map(|place| match place {
                Place::Here(path) => Ok(path),
                Place::There(..) => Err(mixed()),
            });
            Ok(Direction::Up(from.collect::<Result<_>>()?, target, path))
        }
        Place::Here(to) => {
            let mut node: Option<Target> = None;
            let mut from = Vec::new();
            for source in sources {
                match source {
                    Place::There(target, path)
                        if node.as_ref().is_none_or(|node| *node == target) =>
                    {
                        node = Some(target);
                        from.push(path);
                    }
                    Place::There(..) | Place::Here(_) => return Err(mixed()),
                }
            }
            match node {
                Some(node) => Ok(Direction::Down(node, from, to)),
                None => bail!(mixed()),
            }
        }
    }
}

impl FromStr for Place {
    type Err = MalformedTarget;

    fn from_str(text: &str) -> Result<Self, MalformedTarget> {
        // An IPv6 address stands in brackets, perhaps behind an account.
        let bracket = text.find("]:").filter(|end| {
            let host = &text[..*end];
            host.find('[')
                .is_some_and(|begin| !host[..begin].contains(['/', ':']))
        });
        let colon = match bracket {
            Some(bracket) => Some(bracket + 1),
            None => text.find(':').filter(|colon| !text[..*colon].contains('/')),
        };
        let Some(colon) = colon else {
            return Ok(Self::Here(text.into()));
        };
        let (host, path) = (&text[..colon], &text[colon + 1..]);
        let path = match path.strip_prefix('~') {
            // The home directory is where every path begins.
            Some(rest) if rest.is_empty() || rest.starts_with('/') => rest.trim_start_matches('/'),
            Some(_) | None => path,
        };
        let path = if path.is_empty() { "." } else { path };
        let host = host.replace(['[', ']'], "");
        Ok(Self::There(host.parse()?, path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(target: &str, path: &str) -> Option<Place> {
        Some(Place::There(target.parse().unwrap(), path.to_owned()))
    }

    #[test]
    fn a_place_at_a_node_has_a_colon_before_every_slash() {
        let here = |path: &str| Some(Place::Here(path.into()));
        for (text, place) in [
            ("db:", there("db", ".")),
            ("db:~", there("db", ".")),
            ("db:~/a", there("db", "a")),
            ("db:~me/a", there("db", "~me/a")),
            ("root@db:/etc/hosts", there("root@db", "/etc/hosts")),
            ("db:a:b", there("db", "a:b")),
            ("[fd00::1]:a", there("fd00::1", "a")),
            ("me@[fd00::1]:/a", there("me@fd00::1", "/a")),
            ("a", here("a")),
            ("./a:b", here("./a:b")),
            ("/a:b", here("/a:b")),
            (":a", None),
            ("-oProxyCommand=x@db:a", None),
        ] {
            assert_eq!(text.parse().ok(), place, "{text}");
        }
    }

    #[test]
    fn a_copy_has_one_node() {
        let parse = |texts: &[&str]| {
            let mut places: Vec<Place> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let destination = places.pop().unwrap();
            direction(places, destination)
        };
        assert!(matches!(parse(&["a", "b", "db:"]), Ok(Direction::Up(..))));
        assert!(matches!(
            parse(&["db:a", "db:b", "."]),
            Ok(Direction::Down(..))
        ));
        for texts in [
            &["a", "b"][..],
            &["db:a", "db:b"],
            &["db:a", "web:b", "."],
            &["db:a", "b", "."],
        ] {
            assert!(parse(texts).is_err(), "{texts:?}");
        }
    }
}
