//! One module per group of commands: checked arguments in, a use case, output, an exit code.

mod backup;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod env;
mod export;
mod history;
mod profile;
mod restore;
mod setup;
#[cfg(feature = "demo")]
mod simulator;
mod snapshot;
mod verify;

use dynavault_engine::{BackupRequest, Config, Engine, Failure, SnapshotWanted};
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Command, ConfigCommand, EnvCommand, Global, RunCommand, SnapshotCommand, When};
use crate::{exit, print};

/// What a command ends in: an exit code, or a failure that is printed.
pub(crate) type Outcome = Result<u8, Failure>;

/// Carries out a command and gives the exit code.
pub(crate) async fn run(args: Args, cancel: CancellationToken) -> u8 {
    let global = args.global.clone();
    // Where rows stream to standard output a document would be taken for one of them.
    let streams = matches!(&args.command, Command::Export { output, .. } if export::streams(output.as_deref()));
    let code = match dispatch(args.command, &global, cancel).await {
        Ok(code) => code,
        Err(failure) => {
            let code = exit::of_failure(failure.kind());
            print::failure(&failure);
            if global.json && !streams {
                print::failure_document(&failure.message(), failure.remedy(), code);
            }
            code
        }
    };
    if code == exit::DONE && print::lost() { exit::FAILED } else { code }
}

async fn dispatch(command: Command, global: &Global, cancel: CancellationToken) -> Outcome {
    match command {
        #[cfg(feature = "demo")]
        Command::Demo { rows, seed, keep } => demo::run(rows, seed, keep, global, cancel).await,
        Command::Init { path, print } => setup::init(&path, print, global),
        Command::Config(ConfigCommand::Check) => setup::check(global),
        Command::Key(command) => setup::key(command, global),
        Command::Completions { shell } => Ok(setup::completions(shell)),
        Command::Man { folder } => setup::man(&folder, global),
        Command::Doctor { environment } => doctor::run(environment, global, &cancel).await,
        Command::Profile(command) => profile::run(command, global, cancel).await,
        Command::Env(EnvCommand::List) => env::list(global),
        Command::Env(EnvCommand::Tables { environment }) => env::tables(environment, global, cancel).await,
        Command::Env(EnvCommand::Whoami { environment }) => env::whoami(environment, global, cancel).await,
        Command::Backup { environment, tables, full, rebase, dry_run } => {
            let request = BackupRequest { tables, full, rebase, ..BackupRequest::default() };
            backup::run(environment, request, dry_run, global, cancel).await
        }
        Command::Snapshot(SnapshotCommand::List { environment }) => snapshot::list(environment, global).await,
        Command::Snapshot(SnapshotCommand::Show { environment, when }) => {
            snapshot::show(environment, &when, global).await
        }
        Command::Export { environment, table, when, format, output } => {
            export::run(environment, table, &when, format, output, global, cancel).await
        }
        Command::Restore(args) => restore::run(*args, global, cancel).await,
        Command::Verify { environment, deep, sample } => verify::run(environment, deep, sample, global, cancel).await,
        Command::Run(RunCommand::List { environment, status, since, limit }) => {
            history::list(environment, status, since, limit, global).await
        }
        Command::Run(RunCommand::Show { run }) => history::show(&run, global).await,
        Command::Run(RunCommand::Report { run, output }) => history::report(&run, output.as_deref(), global).await,
        Command::Catalog(_) => history::rebuild(global).await,
        #[cfg(feature = "demo")]
        Command::Simulator(command) => simulator::run(command, cancel).await,
    }
}

/// The engine over the configuration that the global options name.
fn engine(global: &Global) -> Result<Engine, Failure> {
    Ok(Engine::new(Config::load(global.config().as_deref())?.config))
}

/// The environment that is meant.
fn environment(engine: &Engine, named: Option<String>) -> Result<String, Failure> {
    match named {
        Some(name) => {
            engine.config().environment(&name)?;
            Ok(name)
        }
        None => engine.only_environment(),
    }
}

/// The snapshot that is meant.
fn wanted(when: &When) -> Result<SnapshotWanted, Failure> {
    match (&when.snapshot, when.at) {
        (None, None) => Ok(SnapshotWanted::Latest),
        (Some(text), _) if text == "latest" => Ok(SnapshotWanted::Latest),
        (Some(text), _) => text.parse().map(SnapshotWanted::Id).map_err(|_| {
            Failure::usage(format!("{text:?} is not a snapshot id"), "`dynavault snapshot list` shows them")
        }),
        (None, Some(time)) => Ok(SnapshotWanted::At(time)),
    }
}
