// State and actions of the memory panel.

import { toJson } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { signal } from "@preact/signals";
import { failureOf } from "./failure.ts";
import { MemoryRecordSchema, type MemoryRecord } from "./gen/memory_service_pb.ts";
import type { MemoryItem } from "./gen/agent_service_pb.ts";
import { goToNew } from "./route.ts";
import { LONG_TIMEOUT_MS, service } from "./service.ts";
import { sessions } from "./sessions.ts";
import { settings, userId } from "./settings.ts";
import type { Failure } from "./turn.ts";

const PAGE_SIZE = 30;
const RESULT_LIMIT = 30;
/** The service's limit for one document. */
const MAX_DOCUMENT_BYTES = 20_000_000;

export interface Memory {
  id: string;
  content: string;
  sourceType: string;
  tags: string[];
  createdAt: Date | undefined;
  documentId: string;
  title: string;
  section: string;
  /** 0 to 1; only set for search results. */
  score?: number;
  supersededBy: string;
  /** A model saved it by itself. */
  isSavedByModel: boolean;
}

export const query = signal("");
export const list = signal<Memory[]>([]);
/** The query that `list` answers; empty query: all memories. */
/** `degradation` is the `x-retrieval` header: `keywords-only` or `vectors-only` if a retriever was unavailable. */
export const resultSummary = signal<{ query: string; total: number; degradation: string } | undefined>(undefined);
export const nextPageToken = signal("");
export const isBusy = signal(false);
export const failure = signal<Failure | undefined>(undefined);

/** Result of an action, shown to the user. */
export type Notice =
  | { kind: "saved" | "known" | "corrected" }
  | { kind: "deleted" | "exported"; count: number }
  | { kind: "importing" | "tooLarge" | "notText"; name: string }
  | { kind: "imported"; name: string; chunks: number };
export const notices = signal<Notice[]>([]);

let latestRequest = 0;

/** Runs an action; a failure is shown in the panel. Returns whether it succeeded. */
async function attempt(work: () => Promise<void>): Promise<boolean> {
  isBusy.value = true;
  failure.value = undefined;
  try {
    await work();
    return true;
  } catch (error) {
    failure.value = failureOf(error);
    return false;
  } finally {
    isBusy.value = false;
  }
}

/** Searches, or lists all memories if the query is blank. */
export async function refresh(): Promise<void> {
  const request = (latestRequest += 1);
  const queryText = query.value.trim();
  await attempt(async () => {
    if (queryText === "") {
      const page = await service.memory.listMemories({ userId: userId(), pageSize: PAGE_SIZE });
      if (request !== latestRequest) return;
      list.value = page.memories.map(fromRecord);
      nextPageToken.value = page.nextPageToken;
      resultSummary.value = { query: "", total: list.value.length, degradation: "" };
      return;
    }
    let degradation = "";
    const found = await service.retrieval.retrieveMemory(
      { userId: userId(), queryText, limit: RESULT_LIMIT, hybridAlpha: settings.alpha.value },
      { onHeader: (headers) => (degradation = headers.get("x-retrieval") ?? "") },
    );
    if (request !== latestRequest) return;
    list.value = found.items.map(fromItem);
    nextPageToken.value = "";
    resultSummary.value = { query: queryText, total: found.totalFound, degradation };
  });
}

export async function loadMore(): Promise<void> {
  const request = latestRequest;
  await attempt(async () => {
    const page = await service.memory.listMemories({ userId: userId(), pageSize: PAGE_SIZE, pageToken: nextPageToken.value });
    if (request !== latestRequest) return;
    list.value = [...list.value, ...page.memories.map(fromRecord)];
    nextPageToken.value = page.nextPageToken;
  });
}

export async function add(content: string): Promise<boolean> {
  return attempt(async () => {
    const { added } = await service.memory.addMemories({ userId: userId(), memories: [{ content }] });
    notices.value = [{ kind: added > 0 ? "saved" : "known" }];
    await refresh();
  });
}

export async function importDocuments(files: Iterable<File>): Promise<void> {
  const results: Notice[] = [];
  for (const file of files) {
    const { name } = file;
    notices.value = [...results, { kind: "importing", name }];
    const content = file.size > MAX_DOCUMENT_BYTES ? undefined : await textOf(file);
    if (content === undefined) {
      results.push({ kind: file.size > MAX_DOCUMENT_BYTES ? "tooLarge" : "notText", name });
      continue;
    }
    const isImported = await attempt(async () => {
      const document = { userId: userId(), documentId: name, title: name.replace(/\.(md|markdown|txt)$/i, ""), content };
      const { chunks } = await service.memory.ingestDocument(document, { timeoutMs: LONG_TIMEOUT_MS });
      results.push({ kind: "imported", name, chunks });
    });
    if (!isImported) break;
  }
  notices.value = results;
  query.value = "";
  if (failure.value === undefined) await refresh();
}

/** The content of a UTF-8 text file; undefined for other files. */
async function textOf(file: File): Promise<string | undefined> {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? undefined : text;
  } catch {
    return undefined;
  }
}

export async function correct(memory: Memory, content: string): Promise<boolean> {
  return attempt(async () => {
    await service.memory.updateMemory({ userId: userId(), id: memory.id, content });
    list.value = list.value.map((other) => (other.id === memory.id ? { ...other, content } : other));
    notices.value = [{ kind: "corrected" }];
  });
}

export async function remove(memory: Memory): Promise<boolean> {
  return attempt(async () => {
    const { deleted } = await service.memory.deleteMemories({ userId: userId(), ids: [memory.id] });
    list.value = list.value.filter(({ id }) => id !== memory.id);
    notices.value = [{ kind: "deleted", count: deleted }];
  });
}

export async function removeDocument(documentId: string): Promise<boolean> {
  return attempt(async () => {
    const { deleted } = await service.memory.deleteMemories({ userId: userId(), documentId });
    list.value = list.value.filter((memory) => memory.documentId !== documentId);
    notices.value = [{ kind: "deleted", count: deleted }];
  });
}

/** Downloads all memories as JSON Lines. */
export async function exportAll(): Promise<void> {
  await attempt(async () => {
    const lines: string[] = [];
    for await (const record of service.memory.exportMemories({ userId: userId() }, { timeoutMs: LONG_TIMEOUT_MS })) {
      lines.push(`${JSON.stringify(toJson(MemoryRecordSchema, record, { useProtoFieldName: true }))}\n`);
    }
    const address = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = `memories-${new Date().toISOString().slice(0, 10)}.jsonl`;
    link.click();
    // The browser starts reading the blob after click() has returned.
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    notices.value = [{ kind: "exported", count: lines.length }];
  });
}

export async function forget(what: { memories: boolean; sessions: boolean }): Promise<boolean> {
  return attempt(async () => {
    if (what.memories) {
      const { deleted } = await service.memory.deleteMemories({ userId: userId(), everything: true });
      notices.value = [{ kind: "deleted", count: deleted }];
    }
    if (what.sessions) {
      await sessions.removeAll();
      goToNew();
    }
    query.value = "";
    await refresh();
  });
}

function fromRecord(record: MemoryRecord): Memory {
  const { id, content, sourceType, tags, documentId, title, sectionTitle, supersededBy } = record;
  const createdAt = record.createdAt && timestampDate(record.createdAt);
  return { id, content, sourceType, tags, createdAt, documentId, title, section: sectionTitle, supersededBy, isSavedByModel: isSavedByModel(record.metadata) };
}

function fromItem({ id, content, score, createdAt, metadata }: MemoryItem): Memory {
  return {
    id,
    content,
    score,
    createdAt: createdAt && timestampDate(createdAt),
    sourceType: metadata["source_type"] ?? "",
    tags: (metadata["tags"] ?? "").split(",").filter((tag) => tag !== ""),
    documentId: metadata["document_id"] ?? "",
    title: metadata["title"] ?? "",
    section: metadata["section_title"] ?? "",
    supersededBy: "",
    isSavedByModel: isSavedByModel(metadata),
  };
}

const isSavedByModel = (metadata: Record<string, string>): boolean => metadata["saved_by"] === "model";
