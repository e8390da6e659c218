//! `dynavault`: arguments in, exit code out.

mod args;
mod commands;
mod exit;
mod print;
mod progress;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> std::process::ExitCode {
    stay_out_of_dumps();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return std::process::ExitCode::from(not_understood(&error)),
    };
    start_log(&args);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Each table and each piece of content holds one blocking thread while it is read; the rest is small change.
        .max_blocking_threads(64)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            print::talk(&format!("error: could not start: {error}"));
            return std::process::ExitCode::from(exit::FAILED);
        }
    };
    let code = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let watched = cancel.clone();
        tokio::select! {
            code = commands::run(args, cancel) => code,
            () = interrupted_twice(watched) => exit::INTERRUPTED,
        }
    });
    // Blocking threads may be waiting for a slow disk or network; nothing they would still do matters.
    runtime.shutdown_background();
    std::process::ExitCode::from(code)
}

/// Prints help, the version, or what is wrong with the command line; gives the exit code.
fn not_understood(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        print::data(error.render().to_string().trim_end());
        return if print::lost() { exit::FAILED } else { exit::DONE };
    }
    drop(error.print());
    if std::env::args_os().any(|argument| argument == "--json") {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        print::failure_document(line, Some("try '--help'"), exit::USAGE);
    }
    exit::USAGE
}

/// A crash writes no memory anywhere: secrets are in it (`entra` protocol, section 12.1). The limit keeps a file from being
/// written, the flag keeps the kernel from handing the memory to a collector of crashes, which ignores the limit. Where the
/// system does not allow either there is nothing to be done about it.
fn stay_out_of_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _not_allowed = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    let _not_allowed = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// The first interrupt asks the work to stop, the second does not wait for it.
async fn interrupted_twice(cancel: CancellationToken) {
    wait_for_signal().await;
    print::talk("stopping; interrupt again to stop at once (nothing durable is lost either way)");
    cancel.cancel();
    wait_for_signal().await;
}

async fn wait_for_signal() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}

fn start_log(args: &args::Args) {
    let default = match (args.global.quiet, args.global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        (_, 2) => "debug",
        _ => "trace",
    };
    // Only our own crates: libraries log addresses and headers at their lower levels.
    let filter = EnvFilter::try_from_env("DYNAVAULT_LOG").unwrap_or_else(|_| {
        EnvFilter::new(format!(
            "off,dynavault={default},dynavault_odata={default},dynavault_ce={default},dynavault_store={default},dynavault_vault={default},dynavault_pipeline={default},dynavault_engine={default},dynavault_identity={default},dynavault_simulator={default}"
        ))
    });
    // A log that cannot be written is passed over: the library would panic where it complains of that.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let ansi = std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    if args.global.json {
        log.json().init();
    } else {
        log.with_ansi(ansi).init();
    }
}
