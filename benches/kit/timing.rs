//! Measuring time: the best of several runs, since what disturbs a run only makes it longer.

use std::time::{Duration, Instant};

use super::Result;

/// The best time of each side.
#[derive(Debug, Clone, Copy)]
pub struct Best {
    /// What ours is compared with.
    pub floor: Duration,
    /// Ours.
    pub ours: Duration,
}

/// Runs both sides in turn, so that what else the machine does meets both. The first run of
/// each warms the caches and does not count.
pub async fn alternate(
    runs: usize,
    mut floor: impl AsyncFnMut() -> Result<Duration>,
    mut ours: impl AsyncFnMut() -> Result<Duration>,
) -> Result<Best> {
    floor().await?;
    ours().await?;
    let mut best = Best {
        floor: Duration::MAX,
        ours: Duration::MAX,
    };
    for _ in 0..runs {
        best.floor = best.floor.min(floor().await?);
        best.ours = best.ours.min(ours().await?);
    }
    Ok(best)
}

/// The best of several runs, without one that warms up.
pub async fn best(runs: usize, mut run: impl AsyncFnMut() -> Result<Duration>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..runs {
        best = best.min(run().await?);
    }
    Ok(best)
}

/// How long `work` takes.
pub async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<Duration> {
    let started = Instant::now();
    work.await?;
    Ok(started.elapsed())
}
