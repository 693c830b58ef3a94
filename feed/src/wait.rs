//! Reading one's own writes: a read that names a receipt waits until the projection has passed it.

use std::sync::Arc;
use std::time::Duration;

use tidelog_events::position::{Appended, Positions};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::FeedError;
use crate::positions;
use crate::store::Store;

/// Returns once every record of the batch is applied; past the deadline, with an error that is worth a retry.
pub(crate) async fn until_applied(
    positions: &watch::Receiver<Arc<Positions>>,
    store: &Store,
    appended: &Appended,
    deadline: Duration,
) -> Result<(), FeedError> {
    let mut positions = positions.clone();
    let covered = async { positions.wait_for(|now| now.cover(appended)).await.is_ok() };
    if let Ok(true) = timeout(deadline, covered).await {
        return Ok(());
    }
    // What is watched may be behind the table by a poll interval; who waits no longer is told by the table.
    match positions::current(store).await?.cover(appended) {
        true => Ok(()),
        false => Err(FeedError::NotApplied(deadline)),
    }
}
