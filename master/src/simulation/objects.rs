//! The object store: memory, and requests that fail.

use super::trouble::Outage;
use super::world::World;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub(super) struct Bucket {
    world: Arc<World>,
    pub(super) memory: Arc<InMemory>,
}

impl Bucket {
    pub(super) fn new(world: Arc<World>, memory: Arc<InMemory>) -> Bucket {
        Bucket { world, memory }
    }

    async fn asked(&self) -> Result<()> {
        self.world.takes("objects", 0, 80).await;
        let percent = self.world.plan.faults.objects_fail;
        if self.world.is_out(Outage::Objects) || self.world.breaks(percent, "objects", 0) {
            return Err(Error::Generic {
                store: "simulation",
                source: "503 Slow Down".into(),
            });
        }
        Ok(())
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a simulated bucket")
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.asked().await?;
        self.memory.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.asked().await?;
        self.memory.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.asked().await?;
        self.memory.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let bucket = self.clone();
        let locations = locations.then(move |location| {
            let bucket = bucket.clone();
            async move {
                bucket.asked().await?;
                location
            }
        });
        self.memory.delete_stream(locations.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (bucket, listed) = (self.clone(), self.memory.list(prefix));
        futures::stream::once(async move { bucket.asked().await })
            .flat_map(move |asked| -> BoxStream<'static, Result<ObjectMeta>> {
                match asked {
                    Ok(()) => futures::stream::empty().boxed(),
                    Err(error) => futures::stream::once(async { Err(error) }).boxed(),
                }
            })
            .chain(listed)
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.asked().await?;
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.asked().await?;
        self.memory.copy_opts(from, to, options).await
    }
}
