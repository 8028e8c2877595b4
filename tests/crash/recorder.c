/* Records every write, sync and change of names below a directory, in order, for tests/crash_model.rs.
 *
 * Loaded with LD_PRELOAD into a process that runs the real store. RECORD_DIR is the directory (absolute), RECORD_OUT the
 * file of the trace. One lock is held through every recorded call, so the order in the trace is the order on the disk.
 *
 * With RECORD_DROP_SYNC set, fdatasync and fsync do nothing: a disk that lies, for tests that must then fail.
 *
 * An event: kind u8 | path length u32 | path | offset u64 | data length u32 | data, numbers in the machine's order.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define FDS_MAX 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *paths[FDS_MAX];
static const char *dir;
static int out = -1;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("RECORD_OUT");
    dir = getenv("RECORD_DIR");
    if (dir && file) out = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int is_watched(const char *path) { return out >= 0 && path && strncmp(path, dir, strlen(dir)) == 0; }
static const char *path_of(int fd) { return fd >= 0 && fd < FDS_MAX ? paths[fd] : NULL; }

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        ssize_t written = syscall(SYS_write, out, at, length);
        if (written <= 0) abort();
        at += written;
        length -= written;
    }
}

static void event(char kind, const char *path, uint64_t offset, const void *data, uint32_t length) {
    uint32_t path_length = strlen(path);
    put(&kind, 1);
    put(&path_length, 4);
    put(path, path_length);
    put(&offset, 8);
    put(&length, 4);
    put(data, length);
}

static void opened(int fd, const char *path, int flags, int existed) {
    if (fd < 0 || fd >= FDS_MAX || !is_watched(path)) return;
    free(paths[fd]);
    paths[fd] = strdup(path);
    if (!existed) event('C', path, 0, "", 0);
    else if (flags & O_TRUNC) event('T', path, 0, "", 0);
}

static int do_open(const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&lock);
    struct stat seen;
    int existed = stat(path, &seen) == 0;
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    opened(fd, path, flags, existed);
    pthread_mutex_unlock(&lock);
    return fd;
}

static mode_t mode_of(int flags, va_list rest) { return flags & O_CREAT ? va_arg(rest, mode_t) : 0; }

int open(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags); mode_t mode = mode_of(flags, rest); va_end(rest);
    return do_open(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags); mode_t mode = mode_of(flags, rest); va_end(rest);
    return do_open(path, flags, mode);
}

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (fd >= 0 && fd < FDS_MAX) { free(paths[fd]); paths[fd] = NULL; }
    int done = syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return done;
}

static ssize_t do_pwrite(int fd, const void *data, size_t length, off64_t offset) {
    pthread_mutex_lock(&lock);
    ssize_t done = syscall(SYS_pwrite64, fd, data, length, offset);
    if (done > 0 && path_of(fd)) event('W', path_of(fd), offset, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return do_pwrite(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return do_pwrite(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length) {
    if (!path_of(fd)) return syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&lock);
    struct stat seen;
    int is_append = fcntl(fd, F_GETFL) & O_APPEND;
    off64_t offset = is_append && fstat(fd, &seen) == 0 ? seen.st_size : lseek64(fd, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_write, fd, data, length);
    if (done > 0) event('W', path_of(fd), offset, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

static int do_truncate(int fd, off64_t length) {
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_ftruncate, fd, length);
    if (done == 0 && path_of(fd)) event('T', path_of(fd), length, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate(int fd, off_t length) { return do_truncate(fd, length); }
int ftruncate64(int fd, off64_t length) { return do_truncate(fd, length); }

static int do_sync(int fd, long call) {
    pthread_mutex_lock(&lock);
    int done = getenv("RECORD_DROP_SYNC") ? 0 : syscall(call, fd);
    if (done == 0 && path_of(fd)) event('S', path_of(fd), 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_rename, from, to);
    if (done == 0 && is_watched(from)) event('R', from, 0, to, strlen(to));
    pthread_mutex_unlock(&lock);
    return done;
}
int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_unlink, path);
    if (done == 0 && is_watched(path)) event('U', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    int done = syscall(SYS_mkdir, path, mode);
    if (done == 0 && is_watched(path)) event('M', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
