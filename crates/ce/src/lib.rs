//! Dataverse: metadata, full and change-tracked reading, files.
