//! Terminals: pseudo-terminals for programs, and raw mode of our own.

use std::{
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::PathBuf,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    pty::{OpenptyResult, openpty},
    sys::{
        signal::{Signal, killpg},
        termios::{
            ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices,
            Termios, cfmakeraw, tcgetattr, tcsetattr,
        },
    },
    unistd::Pid,
};

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
    /// Pixels across; zero if nobody knows.
    pub width: u16,
    /// Pixels down; zero if nobody knows.
    pub height: u16,
}

impl Size {
    /// Returns columns, rows, width and height, as SSH sends them (RFC 4254, 6.2).
    #[must_use]
    pub fn numbers(self) -> [u32; 4] {
        [self.columns, self.rows, self.width, self.height].map(u32::from)
    }
}

impl From<Size> for nix::pty::Winsize {
    fn from(size: Size) -> Self {
        Self {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: size.width,
            ws_ypixel: size.height,
        }
    }
}

/// The side of a pseudo-terminal that stands for the person; does not block.
#[derive(Debug)]
pub struct Pty {
    master: std::fs::File,
}

impl Pty {
    /// Opens a pseudo-terminal; returns it and the side that programs get.
    pub fn open(size: Size) -> io::Result<(Self, OwnedFd)> {
        let winsize = nix::pty::Winsize::from(size);
        let OpenptyResult { master, slave } = openpty(Some(&winsize), None)?;
        for descriptor in [&master, &slave] {
            fcntl(
                descriptor,
                FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
            )?;
        }
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let master = std::fs::File::from(master);
        Ok((Self { master }, slave))
    }

    /// Reads what programs wrote. Once no program has the terminal open it is an error (`EIO`).
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.master).read(buffer)
    }

    /// Writes what a person types.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.master).write(bytes)
    }

    /// Tells programs the new size (SIGWINCH).
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let winsize = nix::pty::Winsize::from(size);
        // SAFETY: the descriptor is open and `winsize` is what the request reads.
        if unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &winsize) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl AsRawFd for Pty {
    fn as_raw_fd(&self) -> RawFd {
        self.master.as_raw_fd()
    }
}

/// Returns the path of the terminal `descriptor`.
pub fn path(descriptor: &impl AsFd) -> io::Result<PathBuf> {
    Ok(nix::unistd::ttyname(descriptor)?)
}

/// Returns the size of the terminal `descriptor`.
pub fn size(descriptor: &impl AsFd) -> io::Result<Size> {
    let mut winsize = nix::pty::Winsize::from(Size::default());
    let descriptor = descriptor.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open and `winsize` is what the request writes.
    if unsafe { libc::ioctl(descriptor, libc::TIOCGWINSZ, &mut winsize) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Size {
        columns: winsize.ws_col,
        rows: winsize.ws_row,
        width: winsize.ws_xpixel,
        height: winsize.ws_ypixel,
    })
}

/// Our own terminal in raw mode; dropping it restores what was before.
#[derive(Debug)]
pub struct Raw {
    descriptor: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Makes the terminal `descriptor` raw.
    pub fn enter(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let descriptor = descriptor.try_clone_to_owned()?;
        let before = tcgetattr(&descriptor)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&descriptor, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { descriptor, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone; there is nothing else to restore.
        let _gone = tcsetattr(&self.descriptor, SetArg::TCSADRAIN, &self.before);
    }
}

/// Lists the modes of a terminal as RFC 4254, 8 numbers them.
pub fn modes(descriptor: &impl AsFd) -> io::Result<Vec<(u8, u32)>> {
    let termios = tcgetattr(descriptor)?;
    let characters = CHARACTERS.iter().map(|(opcode, index)| {
        let character = termios.control_chars[*index as usize];
        // 255 is "none" there; 0 is here (termios(3), `_POSIX_VDISABLE`).
        (
            *opcode,
            if character == 0 {
                255
            } else {
                character.into()
            },
        )
    });
    let flags = FLAGS
        .iter()
        .map(|(opcode, flag)| (*opcode, u32::from(flag.is_set(&termios))));
    Ok(characters.chain(flags).collect())
}

/// Sets modes of a terminal; those that it does not have are ignored.
pub fn set_modes(descriptor: &impl AsFd, modes: &[(u8, u32)]) -> io::Result<()> {
    let mut termios = tcgetattr(descriptor)?;
    for (opcode, value) in modes {
        if let Some((_, index)) = CHARACTERS.iter().find(|(known, _)| known == opcode) {
            let character = u8::try_from(*value).unwrap_or(255);
            let character = if character == 255 { 0 } else { character };
            termios.control_chars[*index as usize] = character;
        }
        if let Some((_, flag)) = FLAGS.iter().find(|(known, _)| known == opcode) {
            flag.set(&mut termios, *value != 0);
        }
    }
    tcsetattr(descriptor, SetArg::TCSANOW, &termios)?;
    Ok(())
}

/// Sends the signal `name`, such as `TERM`, to every process of the group that `leader` leads;
/// false if there is no such signal.
pub fn signal_group(leader: u32, name: &str) -> io::Result<bool> {
    let Ok(signal) = format!("SIG{name}").parse::<Signal>() else {
        return Ok(false);
    };
    let leader = i32::try_from(leader).map_err(io::Error::other)?;
    killpg(Pid::from_raw(leader), signal)?;
    Ok(true)
}

/// Returns the name of a signal without `SIG`.
#[must_use]
pub fn signal_name(number: i32) -> Option<&'static str> {
    let signal = Signal::try_from(number).ok()?;
    signal.as_str().strip_prefix("SIG")
}

/// One bit of a terminal's modes.
enum Flag {
    Input(InputFlags),
    Local(LocalFlags),
    Output(OutputFlags),
    Control(ControlFlags),
}

impl Flag {
    fn is_set(&self, termios: &Termios) -> bool {
        match self {
            Self::Input(flag) => termios.input_flags.contains(*flag),
            Self::Local(flag) => termios.local_flags.contains(*flag),
            Self::Output(flag) => termios.output_flags.contains(*flag),
            Self::Control(flag) => termios.control_flags.contains(*flag),
        }
    }

    fn set(&self, termios: &mut Termios, on: bool) {
        match self {
            Self::Input(flag) => termios.input_flags.set(*flag, on),
            Self::Local(flag) => termios.local_flags.set(*flag, on),
            Self::Output(flag) => termios.output_flags.set(*flag, on),
            Self::Control(flag) => termios.control_flags.set(*flag, on),
        }
    }
}

/// RFC 4254, 8: control characters.
const CHARACTERS: &[(u8, SpecialCharacterIndices)] = &[
    (1, SpecialCharacterIndices::VINTR),
    (2, SpecialCharacterIndices::VQUIT),
    (3, SpecialCharacterIndices::VERASE),
    (4, SpecialCharacterIndices::VKILL),
    (5, SpecialCharacterIndices::VEOF),
    (6, SpecialCharacterIndices::VEOL),
    (7, SpecialCharacterIndices::VEOL2),
    (8, SpecialCharacterIndices::VSTART),
    (9, SpecialCharacterIndices::VSTOP),
    (10, SpecialCharacterIndices::VSUSP),
    (12, SpecialCharacterIndices::VREPRINT),
    (13, SpecialCharacterIndices::VWERASE),
    (14, SpecialCharacterIndices::VLNEXT),
    (18, SpecialCharacterIndices::VDISCARD),
];

/// RFC 4254, 8 and RFC 8160: flags.
const FLAGS: &[(u8, Flag)] = &[
    (30, Flag::Input(InputFlags::IGNPAR)),
    (31, Flag::Input(InputFlags::PARMRK)),
    (32, Flag::Input(InputFlags::INPCK)),
    (33, Flag::Input(InputFlags::ISTRIP)),
    (34, Flag::Input(InputFlags::INLCR)),
    (35, Flag::Input(InputFlags::IGNCR)),
    (36, Flag::Input(InputFlags::ICRNL)),
    (38, Flag::Input(InputFlags::IXON)),
    (39, Flag::Input(InputFlags::IXANY)),
    (40, Flag::Input(InputFlags::IXOFF)),
    (41, Flag::Input(InputFlags::IMAXBEL)),
    (42, Flag::Input(InputFlags::IUTF8)),
    (50, Flag::Local(LocalFlags::ISIG)),
    (51, Flag::Local(LocalFlags::ICANON)),
    (53, Flag::Local(LocalFlags::ECHO)),
    (54, Flag::Local(LocalFlags::ECHOE)),
    (55, Flag::Local(LocalFlags::ECHOK)),
    (56, Flag::Local(LocalFlags::ECHONL)),
    (57, Flag::Local(LocalFlags::NOFLSH)),
    (58, Flag::Local(LocalFlags::TOSTOP)),
    (59, Flag::Local(LocalFlags::IEXTEN)),
    (60, Flag::Local(LocalFlags::ECHOCTL)),
    (61, Flag::Local(LocalFlags::ECHOKE)),
    (62, Flag::Local(LocalFlags::PENDIN)),
    (70, Flag::Output(OutputFlags::OPOST)),
    (72, Flag::Output(OutputFlags::ONLCR)),
    (73, Flag::Output(OutputFlags::OCRNL)),
    (74, Flag::Output(OutputFlags::ONOCR)),
    (75, Flag::Output(OutputFlags::ONLRET)),
    (90, Flag::Control(ControlFlags::CS7)),
    (91, Flag::Control(ControlFlags::CS8)),
    (92, Flag::Control(ControlFlags::PARENB)),
    (93, Flag::Control(ControlFlags::PARODD)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_that_were_set_are_read_back() {
        let (_pty, terminal) = Pty::open(Size::default()).unwrap();
        let before = modes(&terminal).unwrap();
        assert!(before.contains(&(53, 1)), "a new terminal echoes");
        set_modes(&terminal, &[(53, 0), (3, 8), (11, 7), (200, 9)]).unwrap();
        let after = modes(&terminal).unwrap();
        assert!(after.contains(&(53, 0)) && after.contains(&(3, 8)));
        set_modes(&terminal, &[(3, 255)]).unwrap();
        assert!(modes(&terminal).unwrap().contains(&(3, 255)), "none");
    }

    #[test]
    fn a_terminal_has_the_size_it_was_given() {
        let mut wanted = Size {
            columns: 90,
            rows: 33,
            width: 0,
            height: 0,
        };
        let (pty, terminal) = Pty::open(wanted).unwrap();
        assert_eq!(size(&terminal).unwrap(), wanted);
        wanted.rows = 44;
        pty.resize(wanted).unwrap();
        assert_eq!(size(&terminal).unwrap(), wanted);
        assert!(path(&terminal).unwrap().starts_with("/dev/pts"));
    }

    #[test]
    fn raw_mode_ends_with_its_value() {
        let (_pty, terminal) = Pty::open(Size::default()).unwrap();
        let raw = Raw::enter(terminal.as_fd()).unwrap();
        assert!(modes(&terminal).unwrap().contains(&(53, 0)));
        drop(raw);
        assert!(modes(&terminal).unwrap().contains(&(53, 1)));
    }

    #[test]
    fn signals_have_the_names_of_ssh() {
        assert_eq!(signal_name(15), Some("TERM"));
        assert_eq!(signal_name(0), None);
        assert!(!signal_group(std::process::id(), "NONSENSE").unwrap());
    }
}
