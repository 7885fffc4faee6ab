//! What it costs that a cluster does the work, and what more executors bring.
//!
//! The scheduler is in this process, which drives the jobs; each executor is this program, started again.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use headwater::engine::Engine;
use headwater::engine::ballista::executor;
use headwater::engine::ballista::scheduler::{self, Scheduler};
use headwater::session::{Headwater, HeadwaterBuilder};
use tokio::sync::watch;

use super::memory::{mebibytes, peak_of_this};
use super::refresh::{FRAGMENTS, ROWS};
use crate::kit::{Best, Database, Report, Result, Settings, alternate, grouped, timed};

/// The argument that makes this program an executor.
pub const EXECUTOR: &str = "--run-tasks";
/// The argument that makes this program drive a refresh.
pub const DRIVER: &str = "--drive-and-tell-memory";
/// Rows that the function waits for, a millisecond each.
const WAITED: u64 = 8_000;
/// Executors, and how much faster than one they should be.
const SCALES: [(usize, &str); 2] = [
    (2, "ratio ≤ 0.56 (1.8 times as fast)"),
    (4, "ratio ≤ 0.29 (3.4 times)"),
];

/// A refresh on a cluster against the same in this process, and how executors share one that waits.
pub async fn run(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(ROWS);
    let mut report = Report::new(
        "cluster",
        "On a cluster whose processes are all on this machine. `REFRESH COLUMN area ON t FULL` with one executor that \
         has a slot for each core; floor: the same in this process. A function that waits a millisecond for each row, on \
         executors of one slot; floor: one executor.",
    );
    let database = Database::new().await?;
    database.make("t", rows, FRAGMENTS).await?;
    database.declare_area("t").await?;
    {
        let cluster = Cluster::start().await?;
        let _executor = cluster.executor(database.parallelism())?;
        let there = cluster.session(&database.url()).await?;
        let statement = "REFRESH COLUMN area ON t FULL";
        let best = alternate(
            settings.runs,
            async || database.timed_refresh(statement, rows).await,
            async || timed(collect(&there, statement)).await,
        )
        .await?;
        database.check_area("t").await?;
        let goal = best.floor.mul_f64(1.25) + Duration::from_millis(500);
        report.time(
            format!("x * y, {} rows, one executor", grouped(rows)),
            best,
            format!("≤ 1.25 x + 500 ms = {:.0} ms", goal.as_secs_f64() * 1e3),
        );
        let statement = "REFRESH COLUMN area ON t";
        let best = alternate(
            settings.runs,
            async || database.timed_refresh(statement, 0).await,
            async || timed(collect(&there, statement)).await,
        )
        .await?;
        report.time("a refresh with nothing to do", best, "≤ 200 ms");
    }
    database.make("w", WAITED, 40).await?;
    let mut times = Vec::new();
    for executors in [1]
        .into_iter()
        .chain(SCALES.map(|(executors, _)| executors))
    {
        let cluster = Cluster::start().await?;
        let running = (0..executors).map(|_| cluster.executor(1));
        let _running = running.collect::<Result<Vec<_>>>()?;
        let there = cluster.session(&database.url()).await?;
        if executors == 1 {
            collect(&there, "ALTER TABLE w ADD COLUMN z INT AS (wait_1ms(x))").await?;
        }
        let mut best = Duration::MAX;
        for _ in 0..settings.runs {
            let statement = "REFRESH COLUMN z ON w FULL";
            best = best.min(timed(collect(&there, statement)).await?);
        }
        times.push(best);
    }
    for ((executors, goal), time) in SCALES.iter().zip(&times[1..]) {
        let best = Best {
            floor: times[0],
            ours: *time,
        };
        report.time(
            format!(
                "1 ms a row, {} rows, {executors} executors",
                grouped(WAITED)
            ),
            best,
            goal,
        );
    }
    Ok(report)
}

/// Peak memory of the process that drives a refresh, with few fragments and with many.
pub async fn memory(settings: &Settings) -> Result<Report> {
    let rows = settings.rows.unwrap_or(1_000_000);
    let mut report = Report::new(
        "cluster_memory",
        "Peak resident memory of a process that drives `REFRESH COLUMN area ON t FULL` on a cluster of one executor. \
         Floor of the other rows: the first row.",
    );
    let database = Database::new().await?;
    let cluster = Cluster::start().await?;
    let _executor = cluster.executor(database.parallelism())?;
    let mut first = None;
    for (table, rows, fragments) in [
        ("few", rows, 100),
        ("large", 10 * rows, 100),
        ("many", rows, 10_000),
    ] {
        database.make(table, rows, fragments).await?;
        database.declare_area(table).await?;
        let output = Command::new(std::env::current_exe()?)
            .args([DRIVER, &cluster.url(), &database.url(), table])
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("the refresh failed: {}", output.status).into());
        }
        let peak: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
        database.check_area(table).await?;
        let floor = *first.get_or_insert(peak);
        report.row(
            format!("{} rows in {} fragments", grouped(rows), grouped(fragments)),
            mebibytes(floor),
            mebibytes(peak),
            format!("{:.2}", peak as f64 / floor as f64),
            "it does not grow",
        );
    }
    Ok(report)
}

async fn collect(headwater: &Headwater, sql: &str) -> Result<Vec<RecordBatch>> {
    Ok(headwater.sql(sql).await?.collect().await?)
}

/// A scheduler in this process.
struct Cluster(Scheduler);

impl Cluster {
    async fn start() -> Result<Self> {
        let settings = scheduler::Settings {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            external_host: Ipv4Addr::LOCALHOST.to_string(),
            executor_timeout: Duration::from_secs(30),
            security: Default::default(),
        };
        Ok(Self(Scheduler::start(settings, builder().codecs()).await?))
    }

    fn url(&self) -> String {
        self.0.url()
    }

    /// Starts an executor, and waits until it is there.
    fn executor(&self, slots: usize) -> Result<Process> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([EXECUTOR, &self.url(), &slots.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("an executor has no output")?;
        let process = Process(child);
        let mut said = String::new();
        BufReader::new(stdout).read_line(&mut said)?;
        match said.trim() {
            "ready" => Ok(process),
            _ => Err("an executor ended".into()),
        }
    }

    async fn session(&self, database: &str) -> Result<Headwater> {
        let builder = builder().database(database);
        Ok(builder.engine(Engine::ballista(self.url())).build().await?)
    }
}

/// An executor. It ends when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an executor does: `arguments` are the scheduler and the slots.
pub async fn executor(arguments: &[String]) -> Result<()> {
    let [scheduler, slots] = arguments else {
        return Err("a scheduler and slots are needed".into());
    };
    let settings = executor::Settings {
        scheduler: scheduler.clone(),
        bind: Ipv4Addr::LOCALHOST.into(),
        port: 0,
        task_port: 0,
        external_host: None,
        slots: slots.parse()?,
        memory: None,
        label: None,
        work_dir: None,
        patience: Duration::from_secs(10),
        security: Default::default(),
    };
    let (_go_on, stop) = watch::channel(false);
    let ready = |_: &_, _| println!("ready");
    Ok(executor::run(settings, builder().codecs(), stop, ready).await?)
}

/// What a driver does: `arguments` are the scheduler, the database and the table.
pub async fn driver(arguments: &[String]) -> Result<()> {
    let [scheduler, database, table] = arguments else {
        return Err("a scheduler, a database and a table are needed".into());
    };
    let builder = builder().database(database);
    let headwater = builder.engine(Engine::ballista(scheduler)).build().await?;
    collect(&headwater, &format!("REFRESH COLUMN area ON {table} FULL")).await?;
    println!("{}", peak_of_this()?);
    Ok(())
}

fn builder() -> HeadwaterBuilder {
    Headwater::builder().scalar_function(ScalarUDF::new_from_impl(Wait {
        signature: Signature::exact(vec![DataType::Int32], Volatility::Immutable),
    }))
}

/// `wait_1ms(x)` is x, a millisecond a row later: as a service takes its time.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Wait {
    signature: Signature,
}

impl ScalarUDFImpl for Wait {
    fn name(&self) -> &str {
        "wait_1ms"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Int32)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let rows = u64::try_from(args.number_rows).unwrap_or(u64::MAX);
        thread::sleep(Duration::from_millis(rows));
        Ok(args.args[0].clone())
    }
}
