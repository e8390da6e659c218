//! The whole backup path against `curl | zstd -3 -T1` on the same pages.
//!
//! Generates about 1 GB of wide account pages once (seeded), serves them cheaply over loopback from a process of its own, then
//! measures both commands in turn, several rounds, as whole processes: CPU seconds (user + system, as the kernel counts
//! them), wall seconds, peak resident size, stored bytes. Prints ratios of medians; `benches/RESULTS.md` keeps runs that
//! mattered. Needs `curl` and `zstd` on the path and 2.5 GB of disk.
//!
//! `cargo bench --bench backup_path` runs it; `BENCH_ROWS` and `BENCH_ROUNDS` change its size.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod pages;
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a finished command cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    cpu: f64,
    wall: f64,
    peak_mib: f64,
    stored: u64,
}

/// The page server; ends with us, also when a measurement fails.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// User and system seconds of all children waited for so far.
fn children_cpu() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).expect("getrusage works");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => folder_bytes(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.len()),
        })
        .sum()
}

fn yardstick(urls: &[String], out: &Path) -> Cost {
    let list = out.with_extension("urls");
    let config: String = urls.iter().flat_map(|url| ["url = \"", url, "\"\n"]).collect();
    std::fs::write(&list, config).expect("the list of pages can be written");
    let (cpu, start) = (children_cpu(), Instant::now());
    let script = format!("curl -sS -K '{}' | zstd -3 -T1 -q -f -o '{}'", list.display(), out.display());
    let status = Command::new("sh").arg("-c").arg(script).status().expect("sh runs");
    assert!(status.success(), "curl | zstd failed");
    let wall = start.elapsed().as_secs_f64();
    let stored = std::fs::metadata(out).expect("the output exists").len();
    Cost { cpu: children_cpu() - cpu, wall, peak_mib: 0.0, stored }
}

fn ours(config: &Path, vault: &Path) -> Cost {
    for path in [vault.to_path_buf(), config.with_file_name("catalog.db"), config.with_file_name("catalog.state")] {
        let _gone = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
    }
    for suffix in ["-wal", "-shm"] {
        let _gone = std::fs::remove_file(config.with_file_name(format!("catalog.db{suffix}")));
    }
    let (cpu, start) = (children_cpu(), Instant::now());
    let output = Command::new(env!("CARGO_BIN_EXE_dynavault"))
        .args(["--config", &config.display().to_string(), "--json", "--no-progress", "backup"])
        .stderr(Stdio::inherit())
        .output()
        .expect("dynavault runs");
    let wall = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "the backup failed: {}", output.status);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let peak = report["peak_memory_bytes"].as_u64().unwrap_or(0) as f64 / 1_048_576.0;
    Cost { cpu: children_cpu() - cpu, wall, peak_mib: peak, stored: folder_bytes(vault) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("serve") {
        let folder = PathBuf::from(arguments.next().expect("a folder follows"));
        server::serve(&folder);
        return;
    }
    let rows = setting("BENCH_ROWS", 220_000);
    let rounds = setting("BENCH_ROUNDS", 3);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("backup-path-{rows}"));
    let raw = pages::generate(&folder, rows);
    let mut server = Server(
        Command::new(std::env::current_exe().expect("this program has a path"))
            .arg("serve")
            .arg(&folder)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the page server starts"),
    );
    let address = server::read_address(server.0.stdout.take().expect("its output is piped"));
    let urls: Vec<String> = (0..pages::count(rows)).map(|page| format!("{address}/page/{page}")).collect();
    let vault = folder.join("vault");
    let config = server::write_config(&folder, &address, &vault, None);
    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let encrypted = server::write_config(&folder, &address, &vault, Some(recipient));
    let (mut theirs, mut plain, mut sealed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        theirs.push(yardstick(&urls, &folder.join("yardstick.zst")));
        plain.push(ours(&config, &vault));
        sealed.push(ours(&encrypted, &vault));
    }
    drop(server);
    let gigabytes = raw as f64 / 1e9;
    println!("{rows} rows, {gigabytes:.2} GB of JSON, {rounds} rounds, medians");
    let of = |costs: &[Cost], pick: fn(&Cost) -> f64| median(costs.iter().map(pick).collect());
    println!("| command | CPU s/GB | wall s | peak MiB | stored bytes | CPU ratio | bytes ratio |");
    println!("|---|---|---|---|---|---|---|");
    let base = (of(&theirs, |cost| cost.cpu), of(&theirs, |cost| cost.stored as f64));
    for (name, costs) in [("curl \\| zstd -3 -T1", &theirs), ("dynavault", &plain), ("dynavault, encrypted", &sealed)] {
        let (cpu, stored) = (of(costs, |cost| cost.cpu), of(costs, |cost| cost.stored as f64));
        println!(
            "| {name} | {:.2} | {:.2} | {:.0} | {stored:.0} | {:.2} | {:.2} |",
            cpu / gigabytes,
            of(costs, |cost| cost.wall),
            of(costs, |cost| cost.peak_mib),
            cpu / base.0,
            stored / base.1
        );
    }
}
