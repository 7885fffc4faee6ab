//! `headwater serve-refresh`: keeps the views of a database within their lag.

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::arguments::{StoreArguments, limit_memory, size};
use super::signals::{listen, now};
use super::{no_runtime, report, runtime, say};
use crate::Result;
use crate::serve::{Keeper, Settings};
use crate::session::HeadwaterBuilder;
use crate::sql::options::parse_duration;

/// The name of the subcommand.
pub(super) const NAME: &str = "serve-refresh";

const EXAMPLES: &str = "\
A view is kept if it has the option target_lag:
  ALTER MATERIALIZED VIEW totals SET (target_lag = '10 minutes');
  ALTER MATERIALIZED VIEW parts SET (target_lag = 'downstream');    -- as the views that read it need

Examples:
  headwater serve-refresh ./shop                       keep the views of ./shop until a signal comes
  headwater serve-refresh s3://bucket/shop --jobs 8 --option aws_region=eu-west-1
  headwater serve-refresh ./shop --once                refresh what is behind, and end
  */10 * * * * headwater serve-refresh /data/shop --once --every 10m     in a crontab

Each line on standard error is one thing that was done or went wrong; system.materialized_views says how far each view
is behind (seconds_behind), what it may be (lag_limit), and what failed (failures, last_failure, suspended_because).
Two on one database do no harm: one works, the other waits until that ends.

SIGINT (Ctrl-C) and SIGTERM end it: what runs may go on for --grace, then it is cancelled. A second one ends it at once.
What was killed is gone on with when it is started again.
Exit status: 0; 1 if the database can't be opened, or, with --once, if a refresh failed; 2 for wrong arguments;
130 or 143 after a second SIGINT or SIGTERM.";

/// Keep the materialized views of a database within their target_lag
#[derive(Parser)]
#[command(name = "headwater serve-refresh", version, after_help = EXAMPLES)]
pub(super) struct ServeArguments {
    /// A folder, or s3://…, gs://…, az://…
    #[arg(value_name = "DATABASE")]
    database: String,

    /// Refresh what is behind, then end: for cron, and for scripts
    #[arg(long)]
    once: bool,

    /// How many views are refreshed at the same time
    #[arg(short, long, visible_alias = "parallelism", value_name = "N", default_value = "4",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,

    /// Suspend a view after so many failures in a row; 0: never
    #[arg(long, value_name = "N", default_value = "5")]
    suspend_after: u32,

    /// Look so often, such as 30s; by default four times within the shortest lag, from 250 ms to 10 s.
    /// With --once: when it will be run next; what is within its lag until then is left alone
    #[arg(long, value_name = "TIME", value_parser = time)]
    every: Option<Duration>,

    /// How long refreshes that run may go on after a signal, such as 30s or 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    grace: Duration,

    /// Print only what went wrong
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    store: StoreArguments,

    /// How much memory refreshes may use, such as 4g or 512m
    #[arg(short, long, value_name = "BYTES", value_parser = size)]
    memory_limit: Option<u64>,
}

/// Reads a time: a number of seconds, or with a unit.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|time| *time <= Duration::from_secs(366 * 86_400))
        .ok_or_else(|| "a time is written like 30s, 10m or '1 hour', up to 366 days".to_string())
}

/// Runs the subcommand; `args` begin with its name.
pub(super) fn run(args: Vec<OsString>, builder: HeadwaterBuilder) -> ExitCode {
    let arguments = match ServeArguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Also --help and --version come this way.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match start(&arguments, builder) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &ServeArguments, builder: HeadwaterBuilder) -> Result<bool> {
    let options: HashMap<String, String> = arguments.store.options()?;
    // Apart from the one that computes: signals and clocks stand still on a runtime whose workers all compute.
    let computing = runtime("headwater", None)?;
    let keeping = runtime("keeper", Some(2))?;
    let stop = keeping.block_on(async { listen() }).map_err(no_runtime)?;
    let mut builder = builder.database(arguments.database.as_str());
    if !options.is_empty() {
        builder = builder.storage_options(options);
    }
    let settings = Settings {
        jobs: arguments.jobs.into(),
        suspend_after: Some(arguments.suspend_after).filter(|most| *most > 0),
        every: arguments.every,
        grace: arguments.grace,
    };
    let (quiet, once, memory) = (arguments.quiet, arguments.once, arguments.memory_limit);
    let workers = computing.handle().clone();
    let work = async move {
        let session = builder.build().await?;
        limit_memory(session.context(), memory).await?;
        let mut keeper = Keeper::new(&session, workers, settings, move |report| {
            if !quiet || report.is_error() {
                say(&format!("{} {report}", now()));
            }
        });
        if once {
            return keeper.once(stop).await;
        }
        keeper.serve(stop).await.map(|()| true)
    };
    // A task of its own: it has a worker's stack.
    let result = keeping.block_on(keeping.spawn(work));
    // What is left has nobody who waits for it.
    computing.shutdown_background();
    keeping.shutdown_background();
    result.unwrap_or_else(|error| {
        Err(crate::Error::internal(format!(
            "the keeper of views failed: {error}"
        )))
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<ServeArguments, clap::Error> {
        ServeArguments::try_parse_from(std::iter::once(NAME).chain(args.iter().copied()))
    }

    #[test]
    fn the_declaration_is_consistent() {
        ServeArguments::command().debug_assert();
    }

    #[test]
    fn defaults_keep_the_views_until_a_signal() {
        let arguments = parse(&["shop"]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(arguments.database, "shop");
        assert!(!arguments.once && !arguments.quiet);
        assert_eq!((arguments.jobs, arguments.suspend_after), (4, 5));
        assert_eq!(arguments.every, None);
        assert_eq!(arguments.grace, Duration::from_secs(30));
    }

    #[test]
    fn wrong_arguments_are_told() {
        for (args, word) in [
            (&[][..], "DATABASE"),
            (&["shop", "--jobs", "0"], "1..=1024"),
            (&["shop", "--every", "soon"], "30s"),
            (&["shop", "--grace=-1"], "--grace"),
            (&["shop", "--suspend-after", "few"], "few"),
            (&["shop", "more"], "more"),
        ] {
            match parse(args) {
                Ok(_) => panic!("{args:?} were accepted"),
                Err(error) => assert!(error.to_string().contains(word), "{error}"),
            }
        }
        let arguments = parse(&["shop", "--parallelism", "2", "--every", "10m"]);
        let arguments = arguments.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(arguments.jobs, 2);
        assert_eq!(arguments.every, Some(Duration::from_secs(600)));
    }
}
