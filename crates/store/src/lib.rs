//! Object stores: Azure Blob, local folder, memory, behind one port.
