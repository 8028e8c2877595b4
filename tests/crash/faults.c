/* Makes system calls on chosen files fail, for tests/disk_faults.rs. Loaded with LD_PRELOAD into a node.
 *
 * FAULT_FILE names a file that, while it exists, holds one line: CALL ERRNO PART. From then on every CALL (write, sync,
 * read, make) on a file whose path contains PART fails with ERRNO, and how often it did is written to FAULT_FILE.count.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
    static __thread int is_inside;
    const char *name = getenv("FAULT_FILE");
    char line[256], wanted[16], part[200];
    int code;
    if (!name || !path || is_inside) return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = syscall(SYS_read, fd, line, sizeof line - 1);
    syscall(SYS_close, fd);
    line[length > 0 ? length : 0] = 0;
    if (sscanf(line, "%15s %d %199s", wanted, &code, part) != 3) return 0;
    if (strcmp(wanted, call) != 0 || !strstr(path, part)) return 0;
    is_inside = 1;
    char count[4096];
    snprintf(count, sizeof count, "%s.count", name);
    fd = syscall(SYS_openat, AT_FDCWD, count, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    syscall(SYS_write, fd, "x", 1);
    syscall(SYS_close, fd);
    is_inside = 0;
    errno = code;
    return 1;
}

static int fails_on(const char *call, int fd) {
    char link[64], path[4096];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0 || path[0] != '/') return 0;
    path[length] = 0;
    return fails(call, path);
}

static int do_open(const char *path, int flags, mode_t mode) {
    struct stat seen;
    if (flags & O_CREAT && stat(path, &seen) != 0 && fails("make", path)) return -1;
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);
    return do_open(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);
    return do_open(path, flags, mode);
}

#define FAIL(call, fd) if (fails_on(call, fd)) return -1
ssize_t write(int fd, const void *data, size_t n) { FAIL("write", fd); return syscall(SYS_write, fd, data, n); }
ssize_t read(int fd, void *data, size_t n) { FAIL("read", fd); return syscall(SYS_read, fd, data, n); }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { FAIL("write", fd); return syscall(SYS_pwrite64, fd, data, n, at); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { FAIL("write", fd); return syscall(SYS_pwrite64, fd, data, n, at); }
ssize_t pread(int fd, void *data, size_t n, off_t at) { FAIL("read", fd); return syscall(SYS_pread64, fd, data, n, at); }
ssize_t pread64(int fd, void *data, size_t n, off64_t at) { FAIL("read", fd); return syscall(SYS_pread64, fd, data, n, at); }
int fsync(int fd) { FAIL("sync", fd); return syscall(SYS_fsync, fd); }
int fdatasync(int fd) { FAIL("sync", fd); return syscall(SYS_fdatasync, fd); }
int sync_file_range(int fd, off64_t at, off64_t n, unsigned int flags) { FAIL("sync", fd); return syscall(SYS_sync_file_range, fd, at, n, flags); }
