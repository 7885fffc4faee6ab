//! A session: a DataFusion context over a database, with the dialect.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, DynamicFileCatalog, MemoryCatalogProvider,
    MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider, TableProvider,
    UrlTableFactory,
};
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::dynamic_file::DynamicListTableFactory;
use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::ScalarUDF;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use datafusion_cli::catalog::DynamicObjectStoreCatalog;
use datafusion_session::SessionStore;
use lance_io::object_store::WrappingObjectStore;

use crate::column::remote::executor::{Opener, UnitCodec};
use crate::column::system_tables;
use crate::database::blob::{BlobFunctions, blob_functions};
use crate::database::system::{SystemSchema, SystemTable};
use crate::database::{CATALOG_NAME, Database, DatabaseCatalog, LanceTable, SCHEMA_NAME};
use crate::engine::Engine;
use crate::engine::ballista::Cluster;
use crate::engine::ballista::place::{self, PlaceOnCluster};
use crate::engine::deferred::{Codecs, FunctionCodec};
use crate::job;
use crate::job::clock::{Clock, SystemClock};
use crate::job::environment::Environment;
use crate::job::executors::Executors;
use crate::job::jobs::Jobs;
use crate::job::ledger::Ledger;
use crate::sql::execute::Executor;
use crate::sql::parse;
use crate::sql::statement::Statement;
use crate::sql::types::TypeNames;
use crate::storage::keys::KeyFunctions;
use crate::storage::scan::ScanCodec;
use crate::storage::{Root, StoreSettings, open};
use crate::view::calls::CallCodec;
use crate::view::functions::ViewFunctions;
use crate::{Error, Result, view};

/// A database that is open: a DataFusion context whose catalog is the database
/// and whose SQL is the dialect.
#[derive(Debug, Clone)]
pub struct Headwater {
    executor: Executor,
}

/// Opens a [`Headwater`] with settings of its own.
pub struct HeadwaterBuilder {
    url: String,
    context: Option<SessionContext>,
    functions: Vec<ScalarUDF>,
    function_codecs: Vec<Arc<dyn FunctionCodec>>,
    storage_options: HashMap<String, String>,
    store_wrapper: Option<Arc<dyn WrappingObjectStore>>,
    clock: Arc<dyn Clock>,
    engine: Engine,
    served: bool,
}

impl fmt::Debug for HeadwaterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Storage options hold credentials.
        f.debug_struct("HeadwaterBuilder")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Default for HeadwaterBuilder {
    fn default() -> Self {
        Self {
            url: Headwater::DEFAULT_DATABASE.to_string(),
            context: None,
            functions: Vec::new(),
            function_codecs: Vec::new(),
            storage_options: HashMap::new(),
            store_wrapper: None,
            clock: Arc::new(SystemClock),
            engine: Engine::Local,
            served: false,
        }
    }
}

impl Headwater {
    /// Where the database is when nobody says: a folder below the working directory.
    pub const DEFAULT_DATABASE: &'static str = "./headwater-db";

    /// A builder, for settings other than the defaults.
    pub fn builder() -> HeadwaterBuilder {
        HeadwaterBuilder::default()
    }

    /// Opens the database at `url`: a folder, or a URL of an object store.
    /// A folder that is not there is made on the first write.
    pub async fn open(url: &str) -> Result<Self> {
        Self::builder().database(url).build().await
    }

    /// Plans and runs one statement. A statement that changes something has done so
    /// when this returns; a query runs when the frame is collected.
    ///
    /// # Errors
    ///
    /// If the text is not exactly one statement, or the statement fails.
    pub async fn sql(&self, sql: &str) -> Result<DataFrame> {
        let mut statements = parse(sql)?;
        match (statements.pop(), statements.len()) {
            (Some(statement), 0) => self.run(statement).await,
            (Some(_), more) => Err(Error::invalid(format!(
                "one statement was expected, not {}",
                more + 1
            ))),
            (None, _) => Err(Error::invalid("there is no statement")),
        }
    }

    /// As [`sql`](Self::sql), for a statement that is parsed already.
    pub async fn run(&self, statement: Statement) -> Result<DataFrame> {
        self.executor.run(statement).await
    }

    /// The DataFusion context underneath.
    pub fn context(&self) -> &SessionContext {
        &self.executor.context
    }

    /// The database.
    pub fn database(&self) -> &Arc<Database> {
        &self.executor.database
    }

    /// The jobs of this process.
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.executor.jobs
    }

    /// Another session on the same database, in the same process: with settings and tables of its own, which begin as
    /// they are here, and with the same jobs. It is cheap. The first session must outlive it, since it plans views and
    /// virtual columns.
    ///
    /// # Errors
    ///
    /// If the catalog can't be made.
    pub fn new_session(&self) -> Result<Self> {
        let ledger = self.executor.jobs.ledger();
        let database = Arc::new(self.executor.database.for_session());
        let ledger = ledger.for_session(Arc::clone(&database));
        let state = self.context().state();
        // A list of its own: a catalog is found by its name, and that of this session has other tables.
        let catalogs = MemoryCatalogProviderList::new();
        for name in state.catalog_list().catalog_names() {
            if let Some(catalog) = state.catalog_list().catalog(&name)
                && name != CATALOG_NAME
            {
                catalogs.register_catalog(name, catalog);
            }
        }
        let cluster = state.config().get_extension::<Cluster>();
        let own = catalog(&database, ledger.clock(), cluster.as_deref().cloned());
        catalogs.register_catalog(CATALOG_NAME.to_string(), own);
        let mut config = state.config().clone();
        // Executors come and go.
        if let Some(slots) = cluster.and_then(|cluster| cluster.known_slots()) {
            config = config.with_target_partitions(slots);
        }
        let state = SessionStateBuilder::new_from_existing(state)
            .with_config(config)
            .with_session_id(uuid::Uuid::new_v4().to_string())
            .with_catalog_list(Arc::new(catalogs))
            .build();
        let jobs = self.executor.jobs.beside(ledger);
        Ok(Self {
            executor: Executor::new(SessionContext::new_with_state(state), Arc::new(jobs)),
        })
    }

    /// The cluster that work is given to; `None` if it is done in this process.
    pub(crate) fn cluster(&self) -> Option<Arc<Cluster>> {
        self.context()
            .state_ref()
            .read()
            .config()
            .get_extension::<Cluster>()
    }

    /// The same session for one statement of several that run at once: [`take_notices`](Self::take_notices) and
    /// [`Jobs::begun`] tell of this statement only.
    pub fn for_statement(&self) -> Self {
        Self {
            executor: self.executor.for_statement(),
        }
    }

    /// Takes the notices that statements have left since the last call: things that a
    /// user should know although the statement worked.
    pub fn take_notices(&self) -> Vec<String> {
        self.executor.take_notices()
    }
}

impl HeadwaterBuilder {
    /// Where the database is: a folder, or `s3://…`, `gs://…`, `az://…`.
    pub fn database(mut self, url: impl Into<String>) -> Self {
        self.url = url.into();
        self
    }

    /// Adds the catalog and the dialect to a context that is there already. The catalog becomes
    /// its default; what else it has stays.
    pub fn context(mut self, context: SessionContext) -> Self {
        self.context = Some(context);
        self
    }

    /// A scalar function, for queries and computed columns.
    pub fn scalar_function(mut self, function: ScalarUDF) -> Self {
        self.functions.push(function);
        self
    }

    /// Sends functions of the program to other processes of a cluster by what they hold. Those that no codec knows are
    /// sent by their names: then every process has to register them.
    pub fn function_codec(mut self, codec: Arc<dyn FunctionCodec>) -> Self {
        self.function_codecs.push(codec);
        self
    }

    /// Options of the object store, as Lance names them.
    pub fn storage_options(mut self, options: HashMap<String, String>) -> Self {
        self.storage_options = options;
        self
    }

    /// Puts a layer around each object store that holds tables or Headwater's own files: to trace, to
    /// throttle, or to test what happens when a store fails. Lance reads and writes the data files of a database
    /// in a local folder past it; `file-object-store:///folder` sends them through it, too.
    pub fn store_wrapper(mut self, wrapper: Arc<dyn WrappingObjectStore>) -> Self {
        self.store_wrapper = Some(wrapper);
        self
    }

    /// What tells the time of day that jobs write down; the machine's clock if nothing is said.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Where plans run: in this process if nothing is said.
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// What this program can send to other processes of a cluster, and run for them: nodes and functions of the crate,
    /// and the functions that it has registered.
    pub fn codecs(&self) -> Codecs {
        let wrapper = self.store_wrapper.clone();
        let opener = Arc::new(Databases {
            functions: self.functions.clone(),
            store_wrapper: wrapper.clone(),
            clock: Arc::clone(&self.clock),
            open: Mutex::default(),
        });
        let codecs = Codecs::default()
            .with_nodes(Arc::new(ScanCodec::new(wrapper.clone())))
            .with_nodes(Arc::new(UnitCodec::new(opener)))
            .with_nodes(Arc::new(CallCodec))
            .with_functions(Arc::new(KeyFunctions))
            .with_functions(Arc::new(BlobFunctions::new(wrapper)))
            .with_functions(Arc::new(ViewFunctions));
        let own = self.function_codecs.iter().cloned();
        let codecs = own.fold(codecs, Codecs::with_functions);
        let functions = self.functions.iter().cloned();
        functions.fold(codecs, Codecs::with_named)
    }

    /// For a server: the jobs that begin are marked as its own, so that it goes on with them when it is started
    /// again.
    pub fn served(mut self) -> Self {
        self.served = true;
        self
    }

    /// Opens the database.
    ///
    /// # Errors
    ///
    /// If the URL can't be understood, or the place can't be read; [`ErrorKind::Cluster`](crate::ErrorKind::Cluster) if the
    /// server of a cluster does not answer.
    pub async fn build(self) -> Result<Headwater> {
        let cluster = match &self.engine {
            Engine::Local => None,
            Engine::Ballista { url, security } => {
                Some(Cluster::new(url, security.clone(), self.codecs())?)
            }
        };
        let settings = StoreSettings::new(self.storage_options, self.store_wrapper);
        let root = Root::open(&self.url, settings).await?;
        let database = Arc::new(Database::new(root));
        let given = self.context.unwrap_or_else(|| {
            let mut config = SessionConfig::new();
            config.options_mut().format.null = "NULL".to_string();
            SessionContext::new_with_config(config)
        });
        let mut config: SessionConfig = given
            .copied_config()
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG_NAME, SCHEMA_NAME)
            .with_create_default_catalog_and_schema(false);
        // Text is stored as it is named, whatever the engine uses in memory.
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let mut builder = SessionStateBuilder::new_from_existing(given.state())
            .with_type_planner(Arc::new(TypeNames));
        if let Some(cluster) = cluster.clone() {
            config = place::configure(config);
            let slots = cluster.slots(None).await?;
            if slots > 0 {
                config = config.with_target_partitions(slots);
            }
            config = config.with_extension(Arc::new(cluster.clone()));
            let place = Arc::new(PlaceOnCluster::new(cluster));
            builder = builder.with_physical_optimizer_rule(place);
        }
        let state = builder.with_config(config).build();
        let context = SessionContext::new_with_state(state);
        let is_local = cluster.is_none();
        let own = catalog(&database, &self.clock, cluster);
        context.register_catalog(CATALOG_NAME, own);
        for function in blob_functions(database.root().blobs()) {
            context.register_udf(function);
        }
        for function in self.functions {
            context.register_udf(function);
        }
        let state = context.state_weak_ref();
        database.attach(
            Box::new(move || state.upgrade().map(|state| state.read().clone())),
            file_schema(&context, database.root().settings().clone())?,
        );
        let ledger = Ledger::new(database, self.clock);
        let ledger = if is_local {
            ledger
        } else {
            ledger.on_cluster()
        };
        let jobs = Jobs::new(if self.served { ledger.served() } else { ledger });
        Ok(Headwater {
            executor: Executor::new(context, Arc::new(jobs)),
        })
    }
}

/// Databases that are open for work of other processes.
struct Databases {
    functions: Vec<ScalarUDF>,
    store_wrapper: Option<Arc<dyn WrappingObjectStore>>,
    clock: Arc<dyn Clock>,
    open: Mutex<HashMap<String, Headwater>>,
}

impl fmt::Debug for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Databases").finish_non_exhaustive()
    }
}

#[async_trait]
impl Opener for Databases {
    async fn open(&self, url: &str, options: &HashMap<String, String>) -> Result<Environment> {
        let mut sorted: Vec<_> = options.iter().collect();
        sorted.sort();
        let key = format!("{url}{sorted:?}");
        let known = self.lock().get(&key).cloned();
        let session = match known {
            Some(session) => session,
            None => {
                let builder = HeadwaterBuilder {
                    url: url.to_string(),
                    functions: self.functions.clone(),
                    storage_options: options.clone(),
                    store_wrapper: self.store_wrapper.clone(),
                    clock: Arc::clone(&self.clock),
                    ..Default::default()
                };
                let session = Box::pin(builder.build()).await?;
                self.lock().entry(key).or_insert(session).clone()
            }
        };
        Ok(Environment {
            database: Arc::clone(session.database()),
            state: session.context().state(),
            jobs: Arc::clone(session.jobs()),
            workers: tokio::runtime::Handle::current(),
        })
    }
}

impl Databases {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Headwater>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The catalog of a session: the tables of the database, those of the session, and the system tables.
fn catalog(
    database: &Arc<Database>,
    clock: &Arc<dyn Clock>,
    cluster: Option<Cluster>,
) -> Arc<dyn CatalogProvider> {
    let executors: Arc<dyn SystemTable> = Arc::new(Executors(cluster));
    let tables = system_tables()
        .into_iter()
        .chain(job::system::system_tables(clock))
        .chain(view::system::system_tables(clock))
        .chain([executors])
        .collect();
    let system = SystemSchema::new(Arc::clone(database), tables);
    Arc::new(DatabaseCatalog::new(Arc::clone(database), system))
}

/// A schema in which paths and URLs of files are tables. It stands behind the database's own, and
/// registers object stores when a URL names one.
fn file_schema(
    context: &SessionContext,
    settings: StoreSettings,
) -> Result<Arc<dyn SchemaProvider>> {
    let files = Arc::new(FileTables {
        listing: DynamicListTableFactory::new(SessionStore::new()),
        settings,
    });
    files
        .listing
        .session_store()
        .with_state(context.state_weak_ref());
    let empty = MemoryCatalogProvider::new();
    empty.register_schema(SCHEMA_NAME, Arc::new(MemorySchemaProvider::new()))?;
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog(CATALOG_NAME.to_string(), Arc::new(empty));
    let catalogs = DynamicFileCatalog::new(Arc::new(catalogs), files);
    let catalogs = DynamicObjectStoreCatalog::new(Arc::new(catalogs), context.state_weak_ref());
    catalogs
        .catalog(CATALOG_NAME)
        .and_then(|catalog| catalog.schema(SCHEMA_NAME))
        .ok_or_else(|| Error::internal("the schema of files is missing"))
}

/// Tables that a statement names by path: files that DataFusion reads, and Lance tables.
#[derive(Debug)]
struct FileTables {
    listing: DynamicListTableFactory,
    settings: StoreSettings,
}

#[async_trait]
impl UrlTableFactory for FileTables {
    async fn try_new(&self, url: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        let path = url.trim_end_matches('/');
        if path.ends_with(".lance") {
            let dataset = open(path, None, &self.settings, None).await?;
            let table = LanceTable::new(path.to_string(), Arc::new(dataset), false);
            return Ok(Some(Arc::new(table)));
        }
        self.listing.try_new(url).await
    }
}
