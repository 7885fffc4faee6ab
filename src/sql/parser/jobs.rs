//! Statements about jobs.

use std::time::Duration;

use datafusion::sql::sqlparser::tokenizer::Token;

use super::failure::Read;
use super::reader::Reader;
use crate::sql::options::parse_duration;
use crate::sql::statement::{JobObject, JobStatement};

impl Reader {
    /// A statement about jobs, if that comes next.
    pub(super) fn job_statement(&mut self) -> Read<Option<JobStatement>> {
        let statement = if self.eat("SHOW JOBS") {
            self.show_jobs()?
        } else if self.eat("SHOW JOB EVENTS") {
            // SHOW JOB EVENTS FOR 'id' is easily typed too.
            let _ = self.eat("FOR JOB") || self.eat("FOR");
            JobStatement::Events(self.job_id()?)
        } else if self.eat("SHOW ERRORS") {
            self.show_errors()?
        } else if self.names_job("DESCRIBE") || self.names_job("DESC") {
            self.parser().advance_token();
            self.expect("JOB")?;
            JobStatement::Describe(self.job_id()?)
        } else if self.eat("PAUSE") {
            self.expect("JOB")?;
            JobStatement::Pause(self.job_id()?)
        } else if self.eat("RESUME") {
            self.expect("JOB")?;
            JobStatement::Resume(self.job_id()?)
        } else if self.eat("CANCEL") {
            self.expect("JOB")?;
            JobStatement::Cancel(self.job_id()?)
        } else if self.eat("WAIT") {
            self.expect("JOB")?;
            let id = self.job_id()?;
            let timeout = match self.eat("TIMEOUT") {
                true => Some(self.duration()?),
                false => None,
            };
            JobStatement::Wait { id, timeout }
        } else {
            return Ok(None);
        };
        let more = match &statement {
            JobStatement::Jobs { limit: None, .. } => "LIMIT",
            JobStatement::Wait { timeout: None, .. } => "TIMEOUT",
            _ => "",
        };
        self.expect_end(more)?;
        Ok(Some(statement))
    }

    /// Whether `word` comes next, and then JOB with a name: a table may be called job.
    fn names_job(&self, word: &str) -> bool {
        self.at(word)
            && self.at_nth(1, "JOB")
            && matches!(self.token(2).token, Token::SingleQuotedString(_))
    }

    fn show_jobs(&mut self) -> Read<JobStatement> {
        let of = match self.eat("FOR") {
            true => Some(self.job_object("TABLE, VIEW or COLUMN")?),
            false => None,
        };
        let limit = match self.eat("LIMIT") {
            true => Some(self.number()?),
            false => None,
        };
        Ok(JobStatement::Jobs { of, limit })
    }

    fn show_errors(&mut self) -> Read<JobStatement> {
        let (mut job, mut of) = (None, None);
        if self.eat("FOR") {
            if self.eat("JOB") {
                job = Some(self.job_id()?);
            } else {
                of = Some(self.job_object("JOB, TABLE, VIEW or COLUMN")?);
            }
        }
        Ok(JobStatement::Errors { job, of })
    }

    fn job_object(&mut self, expected: &str) -> Read<JobObject> {
        if self.eat("TABLE") {
            let table = self.table()?;
            return Ok(JobObject {
                table,
                column: None,
                is_view: false,
            });
        }
        if self.eat("COLUMN") {
            let column = Some(self.name()?);
            self.expect("ON")?;
            let _ = self.at("TABLE") && !self.at_nth_end(1) && self.eat("TABLE");
            let table = self.table()?;
            return Ok(JobObject {
                table,
                column,
                is_view: false,
            });
        }
        if self.eat("VIEW") || self.eat("MATERIALIZED VIEW") {
            let table = self.table()?;
            return Ok(JobObject {
                table,
                column: None,
                is_view: true,
            });
        }
        self.expected(expected)
    }

    fn job_id(&mut self) -> Read<String> {
        self.quoted("the name of a job in single quotes: SHOW JOBS lists them")
    }

    fn quoted(&mut self, expected: &str) -> Read<String> {
        let text = match &self.token(0).token {
            Token::SingleQuotedString(text) => text.clone(),
            _ => return self.expected(expected),
        };
        self.parser().advance_token();
        Ok(text)
    }

    fn number(&mut self) -> Read<usize> {
        let number = match &self.token(0).token {
            Token::Number(text, _) => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(number) => {
                self.parser().advance_token();
                Ok(number)
            }
            None => self.expected("a whole number"),
        }
    }

    fn duration(&mut self) -> Read<Duration> {
        const EXPECTED: &str = "a time in single quotes, like '30 s', '10m' or '1 hour'";
        let duration = match &self.token(0).token {
            Token::SingleQuotedString(text) | Token::Number(text, _) => parse_duration(text),
            _ => None,
        };
        match duration {
            Some(duration) => {
                self.parser().advance_token();
                Ok(duration)
            }
            None => self.expected(EXPECTED),
        }
    }
}
