//! The command line, as typed.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

/// Backup and restore of Microsoft Dynamics 365 records, in an open format, in storage you own.
#[derive(Debug, Parser)]
#[command(name = "dynavault", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 finished with refused rows or tables,\n4 damage found, 5 another run holds the lock, 6 sign-in or permission, 130 interrupted.\n\nFirst time? Try `dynavault demo`."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Configuration file; else $DYNAVAULT_CONFIG, ./dynavault.toml, the user's configuration folder, /etc/dynavault.
    #[arg(long = "config", global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Print one JSON document on standard output.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say only what went wrong.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more; up to three times.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// No live progress.
    #[arg(long, global = true)]
    pub(crate) no_progress: bool,
}

impl Global {
    /// The configuration file that is named, on the command line or by the environment. An empty variable names none.
    pub(crate) fn config(&self) -> Option<PathBuf> {
        let named = || std::env::var_os("DYNAVAULT_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(named)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show everything on an embedded simulator: no account, no configuration, under a minute.
    #[cfg(feature = "demo")]
    #[command(after_help = "Example: dynavault demo --keep ./demo")]
    Demo {
        /// Rows of the simulated environment.
        #[arg(long, default_value_t = 5_000)]
        rows: u64,
        /// Everything random follows from this number.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Keep the demo's vault and configuration in this folder.
        #[arg(long, value_name = "FOLDER")]
        keep: Option<PathBuf>,
    },
    /// Write a commented configuration file.
    #[command(after_help = "Example: dynavault init ./dynavault.toml")]
    Init {
        /// Where to write it.
        #[arg(default_value = "dynavault.toml")]
        path: PathBuf,
        /// Print it instead.
        #[arg(long)]
        print: bool,
    },
    /// The configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Test sign-in, permissions, storage rights, clock and disk, and say how to mend what fails.
    #[command(
        after_help = "Example: dynavault doctor contoso-prod\n\nEnds with 0 (also with warnings), 2 configuration, 6 sign-in or permission, 1 anything else."
    )]
    Doctor {
        /// Only this environment and its profiles.
        environment: Option<String>,
    },
    /// App profiles: app registrations, and how we sign in with them.
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Environments.
    #[command(subcommand)]
    Env(EnvCommand),
    /// Back up one environment now; returns when the snapshot is durable.
    #[command(after_help = "Example: dynavault backup contoso-prod --table 'account*'")]
    Backup {
        /// The environment; may be left out when only one is configured.
        environment: Option<String>,
        /// Only tables that match (may be given several times).
        #[arg(long = "table", value_name = "GLOB")]
        tables: Vec<String>,
        /// Read everything again and store what differs.
        #[arg(long)]
        full: bool,
        /// Store everything again, without comparing it with what the vault has.
        #[arg(long, requires = "full")]
        rebase: bool,
        /// Show what would be read, and how, without reading a row.
        #[arg(long)]
        dry_run: bool,
    },
    /// Snapshots: what can be restored.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Write the rows of one table as of a snapshot, ordered by row id.
    #[command(
        after_help = "Example: dynavault export contoso-prod --table account --at 2026-01-31T12:00:00Z -o accounts.jsonl"
    )]
    Export {
        /// The environment; may be left out when only one is configured.
        environment: Option<String>,
        /// Logical name of the table.
        #[arg(long)]
        table: String,
        #[command(flatten)]
        when: When,
        /// Form of the output.
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// File to write; standard output when left out.
        #[arg(short, long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
    /// Put records of a snapshot back: writes a plan, and carries it out with --apply.
    #[command(
        args_conflicts_with_subcommands = true,
        subcommand_negates_reqs = true,
        after_help = "Example: dynavault restore contoso-prod --table account --id 0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f --related down:2 -o plan.jsonl"
    )]
    Restore(Box<RestoreArgs>),
    /// Check manifests, segments and hashes of the vault.
    #[command(after_help = "Example: dynavault verify --deep")]
    Verify {
        /// Only this environment.
        environment: Option<String>,
        /// Decode every row and compare it with its hash.
        #[arg(long)]
        deep: bool,
        /// Share of segments and content objects to read.
        #[arg(long, value_name = "N%", default_value = "100%", value_parser = percent)]
        sample: u8,
    },
    /// History of runs.
    #[command(subcommand)]
    Run(RunCommand),
    /// The catalog.
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Keys of encrypted vaults.
    #[command(subcommand)]
    Key(KeyCommand),
    /// The embedded simulator.
    #[cfg(feature = "demo")]
    #[command(subcommand)]
    Simulator(SimulatorCommand),
    /// Print a completion script for a shell.
    #[command(after_help = "Example: dynavault completions bash > /etc/bash_completion.d/dynavault")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder.
    #[command(after_help = "Example: dynavault man ./man")]
    Man {
        /// The folder.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read the configuration and say what is wrong with it.
    #[command(after_help = "Example: dynavault config check --config ./dynavault.toml")]
    Check,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProfileCommand {
    /// Configured profiles, and who is signed in with them.
    #[command(after_help = "Example: dynavault profile list --json")]
    List,
    /// Append a profile to the configuration file; secrets are named by reference.
    #[command(
        after_help = "Example: dynavault profile add contoso-ce --kind ce --tenant contoso.com --client-id 11111111-1111-1111-1111-111111111111 --credential client-secret --secret-env CE_SECRET"
    )]
    Add(Box<AddProfile>),
    /// Sign a person in with a profile of kind `delegated`.
    #[command(after_help = "Example: dynavault profile login contoso-me --device-code")]
    Login {
        /// The profile.
        profile: String,
        #[command(flatten)]
        way: LoginArgs,
    },
    /// Sign in again as the same person; name and history of the profile stay.
    #[command(after_help = "Example: dynavault profile reauthorize contoso-me")]
    Reauthorize {
        /// The profile.
        profile: String,
        #[command(flatten)]
        way: LoginArgs,
        /// Hand the profile over to another person or tenant.
        #[arg(long)]
        switch_user: bool,
    },
    /// Forget the sign-in of a profile on this machine.
    #[command(after_help = "Example: dynavault profile logout contoso-me")]
    Logout {
        /// The profile.
        profile: String,
    },
    /// Print the page at which an administrator grants what a profile needs.
    #[command(after_help = "Example: dynavault profile consent-url contoso-ce")]
    ConsentUrl {
        /// The profile.
        profile: String,
    },
    /// Sign in, and print the permission table with what is granted, missing and not needed.
    #[command(
        after_help = "Example: dynavault profile check contoso-ce --json\n\nEnds with 6 when something needed is missing."
    )]
    Check {
        /// The profile.
        profile: String,
    },
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct LoginArgs {
    /// Enter a code on another device instead of using a browser here.
    #[arg(long)]
    pub(crate) device_code: bool,
    /// Print the address and open no browser.
    #[arg(long, conflicts_with = "device_code")]
    pub(crate) no_browser: bool,
    /// Show the permissions again, also those that were added since the last time.
    #[arg(long, conflicts_with = "device_code")]
    pub(crate) consent: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddProfile {
    /// Name of the new profile.
    pub(crate) name: String,
    /// Family of services.
    #[arg(long, value_parser = ["ce", "uo"])]
    pub(crate) kind: String,
    /// Tenant id or domain.
    #[arg(long)]
    pub(crate) tenant: String,
    /// Application (client) id.
    #[arg(long)]
    pub(crate) client_id: String,
    /// How the application proves who it is.
    #[arg(long, value_enum)]
    pub(crate) credential: CredentialArg,
    /// Environment variable with the client secret.
    #[arg(long, value_name = "NAME", conflicts_with = "secret_file")]
    pub(crate) secret_env: Option<String>,
    /// File with the client secret.
    #[arg(long, value_name = "PATH")]
    pub(crate) secret_file: Option<String>,
    /// File with the certificate and its key, PEM or PFX.
    #[arg(long, value_name = "PATH")]
    pub(crate) certificate_file: Option<String>,
    /// Environment variable with the password of the certificate.
    #[arg(long, value_name = "NAME", conflicts_with = "password_file")]
    pub(crate) password_env: Option<String>,
    /// File with the password of the certificate.
    #[arg(long, value_name = "PATH")]
    pub(crate) password_file: Option<String>,
    /// File with the federated token; the usual webhook's when left out.
    #[arg(long, value_name = "PATH")]
    pub(crate) token_file: Option<String>,
    /// Application id of a user-assigned managed identity; the machine's own when left out.
    #[arg(long, value_name = "ID")]
    pub(crate) identity_client_id: Option<String>,
    /// Which Microsoft cloud.
    #[arg(long, value_parser = ["public", "usgov", "usgov-dod", "china"])]
    pub(crate) cloud: Option<String>,
    /// Sign-in host, when it is not the cloud's own.
    #[arg(long, value_name = "URL")]
    pub(crate) authority: Option<String>,
    /// Microsoft Graph, when it is not the cloud's own.
    #[arg(long, value_name = "URL")]
    pub(crate) graph: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CredentialArg {
    /// A secret of the app registration.
    ClientSecret,
    /// A certificate of the app registration.
    ClientCertificate,
    /// Federated token of a Kubernetes service account.
    WorkloadIdentity,
    /// Managed identity of the machine.
    ManagedIdentity,
    /// The signed-in user of the Azure command line, for developers.
    AzureCli,
    /// A person, who signs in with `profile login`.
    Delegated,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EnvCommand {
    /// Configured environments.
    #[command(after_help = "Example: dynavault env list")]
    List,
    /// Tables of an environment, with rows and how each is read, or why it cannot be.
    #[command(after_help = "Example: dynavault env tables contoso-prod --json")]
    Tables {
        /// The environment; may be left out when only one is configured.
        environment: Option<String>,
    },
    /// Who the environment says it is, and who we are there.
    #[command(after_help = "Example: dynavault env whoami contoso-prod")]
    Whoami {
        /// The environment; may be left out when only one is configured.
        environment: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Snapshots, oldest first.
    #[command(after_help = "Example: dynavault snapshot list contoso-prod")]
    List {
        /// Only this environment.
        environment: Option<String>,
    },
    /// One snapshot with its tables.
    #[command(after_help = "Example: dynavault snapshot show contoso-prod --snapshot latest --json")]
    Show {
        /// The environment; may be left out when only one is configured.
        environment: Option<String>,
        #[command(flatten)]
        when: When,
    },
}

#[derive(Debug, Clone, clap::Args)]
#[group(multiple = false)]
pub(crate) struct When {
    /// Snapshot id, or `latest`.
    #[arg(long, value_name = "ID")]
    pub(crate) snapshot: Option<String>,
    /// The newest snapshot at or before this time, e.g. 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) at: Option<jiff::Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values.
    Csv,
}

/// `restore`.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "independent flags of the command line")]
pub(crate) struct RestoreArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RestoreCommand>,
    /// The environment whose backup is restored; may be left out when only one is configured.
    pub(crate) environment: Option<String>,
    #[command(flatten)]
    pub(crate) when: When,
    /// Only tables that match (may be given several times).
    #[arg(long = "table", value_name = "GLOB")]
    pub(crate) tables: Vec<String>,
    /// Only rows with this id (may be given several times).
    #[arg(long = "id", value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Only rows for which this holds, e.g. "revenue > 1000 and name like 'A%'".
    #[arg(long = "where", value_name = "EXPR")]
    pub(crate) filter: Option<String>,
    /// Only these columns of rows that exist.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    /// Also rows that the selected ones refer to (up:N) and rows that refer to them (down:N), so many levels away.
    #[arg(long, value_name = "up:N,down:N", value_delimiter = ',')]
    pub(crate) related: Vec<String>,
    /// Only rows that no longer exist.
    #[arg(long)]
    pub(crate) deleted_only: bool,
    /// Write into this environment instead of the one that was backed up.
    #[arg(long, value_name = "ENV")]
    pub(crate) to: Option<String>,
    /// File that says which user, team, unit, role, currency or queue there stands for which one here; made if missing.
    #[arg(long, value_name = "FILE")]
    pub(crate) map: Option<PathBuf>,
    /// What to do with values that differ.
    #[arg(long, value_enum, default_value_t = ConflictArg::FillEmpty)]
    pub(crate) conflict: ConflictArg,
    /// Also delete rows that the snapshot does not have; --apply then needs --confirm-deletes.
    #[arg(long)]
    pub(crate) mirror: bool,
    /// Carry out the deletions of the plan.
    #[arg(long)]
    pub(crate) confirm_deletes: bool,
    /// Let plug-ins, workflows and flows run; without it they are bypassed.
    #[arg(long)]
    pub(crate) run_automation: bool,
    /// Make rows on behalf of the user who made them.
    #[arg(long)]
    pub(crate) as_creator: bool,
    /// File for the plan; `plan-<time>.jsonl` in the working folder when left out.
    #[arg(short, long, value_name = "PLAN")]
    pub(crate) output: Option<PathBuf>,
    /// Carry out the plan.
    #[arg(long)]
    pub(crate) apply: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RestoreCommand {
    /// Carry out a plan, or go on with one that was interrupted.
    #[command(after_help = "Example: dynavault restore apply plan.jsonl")]
    Apply {
        /// The plan.
        plan: PathBuf,
        /// Carry out the deletions of the plan.
        #[arg(long)]
        confirm_deletes: bool,
    },
    /// Plan how to take back what a restore did.
    #[command(after_help = "Example: dynavault restore undo 01J8ZQ4T3N5K6M7P8R9S0TVWXY --apply --confirm-deletes")]
    Undo {
        /// The run; the end of the id is enough.
        run: String,
        /// Also take back values that were changed again since.
        #[arg(long)]
        overwrite: bool,
        /// File for the plan.
        #[arg(short, long, value_name = "PLAN")]
        output: Option<PathBuf>,
        /// Carry out the plan.
        #[arg(long)]
        apply: bool,
        /// Carry out the deletions of the plan: of the rows that the restore made.
        #[arg(long)]
        confirm_deletes: bool,
    },
    /// How far a restore has come, and what was refused.
    #[command(after_help = "Example: dynavault restore status 01J8ZQ4T3N5K6M7P8R9S0TVWXY")]
    Status {
        /// The run; the end of the id is enough.
        run: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConflictArg {
    /// Leave rows that exist alone.
    Skip,
    /// The snapshot wins.
    Overwrite,
    /// Fill what is empty; leave every other value alone and list it.
    FillEmpty,
    /// The side that was modified last wins, row by row.
    NewerWins,
    /// Stop when anything differs.
    Fail,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// Runs, newest first.
    #[command(after_help = "Example: dynavault run list --env contoso-prod --status failed")]
    List {
        /// Only of this environment.
        #[arg(long = "env", value_name = "ENV")]
        environment: Option<String>,
        /// Only with this status.
        #[arg(long, value_enum)]
        status: Option<Status>,
        /// Only started at or after this time.
        #[arg(long, value_name = "TIME", value_parser = moment)]
        since: Option<jiff::Timestamp>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// One run with its tables; the end of the id is enough.
    #[command(after_help = "Example: dynavault run show 01J8ZQ4T3N5K6M7P8R9S0TVWXY")]
    Show {
        /// The run.
        run: String,
    },
    /// A self-contained page about a run, for people who were not there.
    #[command(after_help = "Example: dynavault run report 01J8ZQ4T3N5K6M7P8R9S0TVWXY -o report.html")]
    Report {
        /// The run; the end of the id is enough.
        run: String,
        /// File to write.
        #[arg(short, long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Status {
    Running,
    Succeeded,
    Partial,
    Failed,
    Cancelled,
    Interrupted,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CatalogCommand {
    /// Record every snapshot of the vault in the catalog.
    #[command(after_help = "Example: dynavault catalog rebuild")]
    Rebuild,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key pair: the secret key goes to a file, the public key to standard output.
    #[command(after_help = "Example: dynavault key generate /secure/restore.key")]
    Generate {
        /// File for the secret key; must not exist.
        path: PathBuf,
    },
}

#[cfg(feature = "demo")]
#[derive(Debug, Subcommand)]
pub(crate) enum SimulatorCommand {
    /// Serve the simulator until interrupted; prints how to reach it as JSON.
    #[command(after_help = "Example: dynavault simulator serve --port 8080 --rows 20000")]
    Serve {
        /// Port on 127.0.0.1; 0 lets the system choose.
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Rows of the simulated environment.
        #[arg(long, default_value_t = 2_000)]
        rows: u64,
        /// Rows of the generated table `new_big`.
        #[arg(long, default_value_t = 0)]
        big_rows: u64,
        /// Everything random follows from this number.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Enforce the service protection limits.
        #[arg(long)]
        limits: bool,
        /// Milliseconds added to every request.
        #[arg(long, default_value_t = 0)]
        latency_ms: u64,
        /// Write a matching configuration file into this folder.
        #[arg(long, value_name = "FOLDER")]
        write_config: Option<PathBuf>,
    },
}

/// A point in time. Without a zone it is not known which one is meant, and a guess would give other rows than those asked for.
fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse()
        .map_err(|_| "give date, time and zone, e.g. 2026-01-31T12:00:00Z or 2026-01-31T13:00:00+01:00".to_string())
}

fn percent(text: &str) -> Result<u8, String> {
    match text.strip_suffix('%').unwrap_or(text).parse::<u8>() {
        Ok(percent) if (1..=100).contains(&percent) => Ok(percent),
        _ => Err("give a percentage from 1% to 100%".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_leaf_command_shows_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            let leaves: Vec<_> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
            if leaves.is_empty() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example:"), "{path} has no example");
            }
            for sub in leaves {
                walk(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        walk(&Args::command(), "dynavault");
    }
}
