CREATE TABLE projects (id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, last_active TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE memories (id INTEGER PRIMARY KEY AUTOINCREMENT, project_id INTEGER NOT NULL, verbatim TEXT NOT NULL,
    event_type TEXT NOT NULL, file_path TEXT, line_number INTEGER, salience TEXT NOT NULL,
    access_count INTEGER DEFAULT 0, last_accessed TIMESTAMP, gist TEXT NOT NULL, tags TEXT,
    pinned INTEGER DEFAULT 0, pin_reason TEXT, pinned_at TIMESTAMP, occurrence_count INTEGER DEFAULT 1,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, expires_at TIMESTAMP,
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE);
ALTER TABLE memories ADD COLUMN status TEXT DEFAULT 'ACTIVE';
ALTER TABLE memories ADD COLUMN decay_reason TEXT; ALTER TABLE memories ADD COLUMN outcome INTEGER DEFAULT 0;
CREATE VIRTUAL TABLE memories_fts USING fts5(memory_id, gist, verbatim, tags);
CREATE TABLE active_state (file_path TEXT PRIMARY KEY, project_id INTEGER, has_errors BOOLEAN DEFAULT FALSE,
    error_count INTEGER DEFAULT 0, warning_count INTEGER DEFAULT 0,
    last_updated TIMESTAMP DEFAULT CURRENT_TIMESTAMP, error_summary TEXT,
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE);
CREATE TABLE audience_gists (id INTEGER PRIMARY KEY AUTOINCREMENT, memory_id INTEGER NOT NULL, audience TEXT NOT NULL,
    gist TEXT NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    FOREIGN KEY (memory_id) REFERENCES memories(id) ON DELETE CASCADE, UNIQUE (memory_id, audience));
CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL); INSERT INTO metadata VALUES ('schema_version', '4');
