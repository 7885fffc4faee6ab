//! The rows of a statement, as they come.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::FlightData;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt, TryStreamExt};
use tonic::Streaming;

use super::Client;
use crate::protocol::StatementState;
use crate::{Error, Result};

/// The rows of a statement: a stream of batches. Dropping it cancels what is not computed yet.
pub struct Rows {
    client: Client,
    schema: SchemaRef,
    batches: FlightRecordBatchStream,
    state: StatementState,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl Rows {
    pub(super) fn new(
        client: Client,
        schema: SchemaRef,
        messages: Streaming<FlightData>,
        state: StatementState,
    ) -> Self {
        let messages = messages.map_err(|status| FlightError::Tonic(Box::new(status)));
        Self {
            client,
            schema,
            batches: FlightRecordBatchStream::new_from_flight_data(messages),
            state,
        }
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What a user should know although the statement worked.
    pub fn notices(&self) -> &[String] {
        &self.state.notices
    }

    /// How the statement went.
    pub fn state(&self) -> &StatementState {
        &self.state
    }

    /// All rows.
    ///
    /// # Errors
    ///
    /// If the query fails, or the server goes away.
    pub async fn collect(self) -> Result<Vec<RecordBatch>> {
        self.try_collect().await
    }

    /// The same as a stream of DataFusion.
    pub fn into_stream(self) -> SendableRecordBatchStream {
        let schema = self.schema.clone();
        let batches = self.map(|batch| batch.map_err(Into::into));
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let batch = ready!(self.batches.poll_next_unpin(context));
        Poll::Ready(batch.map(|batch| {
            batch.map_err(|error| match error {
                FlightError::Tonic(status) => self.client.failure(&status),
                FlightError::Arrow(error) => error.into(),
                other => Error::internal(format!("the rows can't be read: {other}")),
            })
        }))
    }
}
