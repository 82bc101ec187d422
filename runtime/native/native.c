/* The per-call work of a plan in C: checking tensors, watching Python objects, launching C++ kernels.
 *
 * Tensors are read and made through torch's DLPack exchange API, a table of C functions; no other part of torch is
 * used, so one build serves every torch whose table has the same major version. `initialize` must run first. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>

#include "dlpack.h"

#define MAX_TYPES 4
/* Bytes of output above which other Python threads may run while the kernel does; handing the GIL over and back is
 * noise beside writing this much. */
#define RELEASE_BYTES (1 << 18)

static const DLPackExchangeAPI *exchange;
static PyTypeObject *tensor_types[MAX_TYPES];
static int n_tensor_types;
static PyObject *absent;     /* the sentinel that stands for a missing key or attribute */
static PyCFunction is_neg;   /* Tensor.is_neg and Tensor.is_conj, called without a lookup */
static PyCFunction is_conj;
/* Where the dispatch keys of a tensor lie: `pointer_at` bytes into the Python object is the address of its
 * implementation, and `keys_at` bytes into that the keys. Found by measurement; a mask of 0 means not found. */
static Py_ssize_t pointer_at, keys_at;
static uint64_t lazy_mask;

/* ---- reading tensors ---- */

static inline int is_tensor(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    for (int i = 0; i < n_tensor_types; i++)
        if (type == tensor_types[i]) return 1;
    return 0;
}

static inline int is_empty(const DLTensor *t) {
    for (int d = 0; d < t->ndim; d++)
        if (t->shape[d] == 0) return 1;
    return 0;
}

/* Calls a METH_NOARGS method that returns a bool: 1, 0, or -1 with an exception set. */
static inline int ask(PyCFunction method, PyObject *tensor) {
    PyObject *answer = method(tensor, NULL);
    if (!answer) return -1;
    int truth = answer == Py_True;
    Py_DECREF(answer);
    return truth;
}

/* Whether a tensor's elements are to be negated or conjugated when they are read; -1 with an exception set. */
static inline int is_lazy(PyObject *tensor, uint8_t code) {
    if (lazy_mask) {
        const char *implementation;
        uint64_t keys;
        memcpy(&implementation, (const char *)tensor + pointer_at, sizeof implementation);
        memcpy(&keys, implementation + keys_at, sizeof keys);
        return (keys & lazy_mask) != 0;
    }
    int lazy = ask(is_neg, tensor);
    return lazy || code != kDLComplex ? lazy : ask(is_conj, tensor);
}

/* 1: `out` describes the tensor. 0: no tensor in plain memory, no exception. -1: an exception is set. */
static inline int describe(PyObject *object, DLTensor *out) {
    if (!is_tensor(object)) return 0;
    if (exchange->dltensor_from_py_object_no_sync(object, out)) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_MemoryError) ||
            !PyErr_ExceptionMatches(PyExc_Exception)) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_SystemError, "the tensor could not be read");
            return -1;
        }
        PyErr_Clear(); /* another layout, a wrapper: the exchange has no words for it */
        return 0;
    }
    if (out->dtype.lanes != 1) return 0;
    if (out->ndim && !out->strides) return 0;
    if (!out->data && !is_empty(out)) return 0; /* storage that was freed, or zeros that were never written */
    int lazy = is_lazy(object, out->dtype.code);
    return lazy < 0 ? -1 : !lazy;
}

/* ---- Guard ---- */

typedef struct {
    int64_t tensor, stride, dim;
} Source;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *fallback; /* the same guard in Python, for tensors that describe() has no words for */
    int64_t *words;     /* the spec */
    int64_t n_tensors, n_symbols;
    const Source *sources;
    const int64_t *tensors; /* per tensor: device type, device, code, bits, ndim, then its sizes and strides */
} Guard;

/* Reads one monomial: coefficient, number of factors, the factors' symbols. 0 when it does not fit 64 bits. */
static inline int monomial(const int64_t **at, const int64_t *values, int64_t *out) {
    const int64_t *p = *at;
    int64_t product = p[0], n = p[1];
    p += 2;
    *at = p + n;
    for (int64_t i = 0; i < n; i++)
        if (__builtin_mul_overflow(product, values[p[i]], &product)) return 0;
    *out = product;
    return 1;
}

static int guard_fits(Guard *self, const DLTensor *described, const int64_t *values) {
    const int64_t *p = self->tensors;
    for (int64_t k = 0; k < self->n_tensors; k++) {
        const DLTensor *t = &described[k];
        int64_t wanted;
        p += 5;
        for (int d = 0; d < t->ndim; d++)
            if (!monomial(&p, values, &wanted) || wanted != t->shape[d]) return 0;
        int empty = is_empty(t);
        for (int d = 0; d < t->ndim; d++) {
            int fits = monomial(&p, values, &wanted) && wanted == t->strides[d];
            if (!fits && !empty) return 0; /* also where the size is 1: layouts of results follow it */
        }
    }
    return 1;
}

static PyObject *guard_call(PyObject *object, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    Guard *self = (Guard *)object;
    if (kwnames && PyTuple_GET_SIZE(kwnames)) {
        PyErr_SetString(PyExc_TypeError, "a guard takes no keyword arguments");
        return NULL;
    }
    if (PyVectorcall_NARGS(nargsf) != self->n_tensors) Py_RETURN_NONE;
    DLTensor described[self->n_tensors + 1];
    int64_t values[self->n_symbols + 1];
    const int64_t *p = self->tensors;
    for (int64_t k = 0; k < self->n_tensors; k++) {
        DLTensor *t = &described[k];
        int read = describe(args[k], t);
        if (read < 0) return NULL;
        if (!read) {
            if (!is_tensor(args[k])) Py_RETURN_NONE;
            return PyObject_Vectorcall(self->fallback, args, self->n_tensors, NULL);
        }
        if (t->device.device_type != (DLDeviceType)p[0] || t->device.device_id != p[1] || t->dtype.code != p[2] ||
            t->dtype.bits != p[3] || t->ndim != p[4])
            Py_RETURN_NONE;
        p += 5;
        for (int d = 0; d < 2 * t->ndim; d++) p += 2 + p[1];
    }
    for (int64_t i = 0; i < self->n_symbols; i++) {
        const Source *s = &self->sources[i];
        const DLTensor *t = &described[s->tensor];
        values[i] = s->stride ? t->strides[s->dim] : t->shape[s->dim];
        if (values[i] < 2) Py_RETURN_NONE; /* 0 and 1 are recorded as numbers, of sizes and of strides */
    }
    if (!guard_fits(self, described, values)) Py_RETURN_NONE;
    PyObject *result = PyTuple_New(self->n_symbols);
    if (!result) return NULL;
    for (int64_t i = 0; i < self->n_symbols; i++) {
        PyObject *value = PyLong_FromLongLong(values[i]);
        if (!value) {
            Py_DECREF(result);
            return NULL;
        }
        PyTuple_SET_ITEM(result, i, value);
    }
    return result;
}

/* Whether `words[0..n)` is a spec whose every number is in range, so that a call needs no checks. */
static int guard_parse(Guard *self, int64_t n) {
    const int64_t *w = self->words;
    if (n < 2 || w[0] < 0 || w[1] < 0 || w[0] > 4096 || w[1] > 4096 || 2 + 3 * w[1] > n) return 0;
    self->n_tensors = w[0];
    self->n_symbols = w[1];
    self->sources = (const Source *)(w + 2);
    self->tensors = w + 2 + 3 * w[1];
    int64_t ndims[w[0] + 1];
    int64_t at = 2 + 3 * w[1];
    for (int64_t k = 0; k < w[0]; k++) {
        if (at + 5 > n || w[at + 4] < 0 || w[at + 4] > 64) return 0;
        ndims[k] = w[at + 4];
        at += 5;
        for (int64_t d = 0; d < 2 * ndims[k]; d++) {
            if (at + 2 > n || w[at + 1] < 0 || w[at + 1] > n - at - 2) return 0;
            for (int64_t i = 0; i < w[at + 1]; i++)
                if (w[at + 2 + i] < 0 || w[at + 2 + i] >= w[1]) return 0;
            at += 2 + w[at + 1];
        }
    }
    for (int64_t i = 0; i < w[1]; i++) {
        const Source *s = &self->sources[i];
        if (s->tensor < 0 || s->tensor >= w[0] || s->dim < 0 || s->dim >= ndims[s->tensor]) return 0;
    }
    return at == n;
}

static PyObject *guard_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"spec", "fallback", NULL};
    const char *spec;
    Py_ssize_t length;
    PyObject *fallback;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#O:Guard", names, &spec, &length, &fallback)) return NULL;
    Guard *self = (Guard *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->vectorcall = guard_call;
    self->fallback = Py_NewRef(fallback);
    self->words = PyMem_Malloc(length ? length : 1);
    if (!self->words) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    memcpy(self->words, spec, length);
    if (length % 8 || !guard_parse(self, length / 8)) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "the bytes are no guard spec");
        return NULL;
    }
    return (PyObject *)self;
}

static int guard_traverse(Guard *self, visitproc visit, void *arg) {
    Py_VISIT(self->fallback);
    return 0;
}

static int guard_clear(Guard *self) {
    Py_CLEAR(self->fallback);
    return 0;
}

static void guard_dealloc(Guard *self) {
    PyObject_GC_UnTrack(self);
    guard_clear(self);
    PyMem_Free(self->words);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* ---- Snapshot ---- */

enum { ITEM, SIZE, ATTRIBUTE, BASES, INDEX, CLASS, CODE, CALL }; /* BASES: the attribute __mro__ of a class */

/* CPython 3.11 numbers every state of every dict, so a dict whose number is the same has not changed. Later versions
 * deprecate the number; there every call looks the keys up. */
#if PY_VERSION_HEX < 0x030C0000
#define VERSION(dict) (((PyDictObject *)(dict))->ma_version_tag)
#else
#define VERSION(dict) UINT64_C(0)
#endif

typedef struct {
    int kind;
    Py_ssize_t size;
    Py_ssize_t run;   /* how many entries in a row about one dict begin here; 1 for an entry about anything else */
    uint64_t version; /* of that dict, when they last all held; 0 for never */
    PyObject *target, *key, *expected;
} Entry;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Py_ssize_t n;
    Entry *entries;
} Snapshot;

/* 1: as expected. 0: changed. -1: an exception is set. */
static int entry_holds(Entry *e) {
    if (e->kind == ITEM) {
        PyObject *found = PyDict_GetItemWithError(e->target, e->key);
        if (!found && PyErr_Occurred()) return -1;
        return (found ? found : absent) == e->expected;
    }
    if (e->kind == SIZE) {
        Py_ssize_t size = PyObject_Size(e->target);
        return size < 0 ? -1 : size == e->size;
    }
    if (e->kind == INDEX)
        return PyList_GET_SIZE(e->target) > e->size && PyList_GET_ITEM(e->target, e->size) == e->expected;
    if (e->kind == BASES) return ((PyTypeObject *)e->target)->tp_mro == e->expected;
    if (e->kind == CLASS) return (PyObject *)Py_TYPE(e->target) == e->key;
    if (e->kind == CODE) return PyFunction_GET_CODE(e->target) == e->key;
    if (e->kind == CALL) {
        PyObject *given = PyObject_CallNoArgs(e->target);
        if (!given) return -1;
        Py_DECREF(given);
        return given == e->key;
    }
    PyObject *found = PyObject_GetAttr(e->target, e->key);
    if (!found) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
        PyErr_Clear();
        return e->expected == absent;
    }
    Py_DECREF(found);
    return found == e->expected;
}

/* Whether the version of the entry's target says that the entry still holds. */
static int is_of_dict(const Entry *e) {
    return (e->kind == ITEM || e->kind == SIZE) && (PyDict_CheckExact(e->target) || PyODict_CheckExact(e->target));
}

/* Whether all entries from `first` to `end` hold; as `entry_holds`. */
static int entries_hold(Entry *first, const Entry *end) {
    for (Entry *e = first; e < end; e += e->run) {
        uint64_t version = is_of_dict(e) ? VERSION(e->target) : 0; /* before the lookups, which may run code */
        if (version && version == e->version) continue;
        for (Entry *one = e; one < e + e->run; one++) {
            int holds = entry_holds(one);
            if (holds != 1) return holds;
        }
        e->version = version;
    }
    return 1;
}

static PyObject *snapshot_call(PyObject *object, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    Snapshot *self = (Snapshot *)object;
    if (PyVectorcall_NARGS(nargsf) || (kwnames && PyTuple_GET_SIZE(kwnames))) {
        PyErr_SetString(PyExc_TypeError, "a snapshot is called without arguments");
        return NULL;
    }
    int hold = entries_hold(self->entries, self->entries + self->n);
    return hold < 0 ? NULL : PyBool_FromLong(hold);
}

static void find_runs(Entry *entries, Py_ssize_t n) {
    Entry *first = NULL;
    for (Entry *e = entries; e < entries + n; e++) {
        if (first && is_of_dict(e) && first->target == e->target) {
            first->run++;
        } else {
            e->run = 1;
            first = is_of_dict(e) ? e : NULL;
        }
    }
}

static int entry_parse(Entry *e, PyObject *tuple) {
    const char *kind;
    PyObject *target, *second, *expected = NULL;
    if (!PyTuple_Check(tuple)) {
        PyErr_SetString(PyExc_TypeError, "a snapshot's entries are tuples");
        return -1;
    }
    if (!PyArg_ParseTuple(tuple, "sOO|O:entry", &kind, &target, &second, &expected)) return -1;
    if (!strcmp(kind, "size") && !expected) {
        e->kind = SIZE;
        e->size = PyLong_AsSsize_t(second);
        if (e->size == -1 && PyErr_Occurred()) return -1;
    } else if (!strcmp(kind, "item") && expected && PyDict_Check(target)) {
        e->kind = ITEM;
    } else if (!strcmp(kind, "index") && expected && PyList_Check(target)) {
        e->kind = INDEX;
        e->size = PyLong_AsSsize_t(second);
        if (e->size < 0) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a list's index is not negative");
            return -1;
        }
    } else if (!strcmp(kind, "attribute") && expected && PyUnicode_Check(second)) {
        int bases = PyType_CheckExact(target) && PyUnicode_CompareWithASCIIString(second, "__mro__") == 0;
        e->kind = bases ? BASES : ATTRIBUTE;
    } else if (!strcmp(kind, "class") && !expected && PyType_Check(second)) {
        e->kind = CLASS;
    } else if (!strcmp(kind, "code") && !expected && PyFunction_Check(target) && PyCode_Check(second)) {
        e->kind = CODE;
    } else if (!strcmp(kind, "call") && !expected && PyCallable_Check(target)) {
        e->kind = CALL;
    } else {
        PyErr_Format(PyExc_ValueError, "%R is no entry of a snapshot", tuple);
        return -1;
    }
    e->target = Py_NewRef(target);
    e->key = Py_NewRef(second);
    e->expected = Py_XNewRef(expected);
    if (PyUnicode_CheckExact(e->key)) PyUnicode_InternInPlace(&e->key);
    return 0;
}

static PyObject *snapshot_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"entries", NULL};
    PyObject *given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Snapshot", names, &given)) return NULL;
    PyObject *listed = PySequence_Fast(given, "a snapshot's entries are a sequence of tuples");
    if (!listed) return NULL;
    Snapshot *self = (Snapshot *)type->tp_alloc(type, 0);
    Py_ssize_t n = PySequence_Fast_GET_SIZE(listed);
    if (self && !(self->entries = PyMem_Calloc(n ? n : 1, sizeof(Entry)))) {
        PyErr_NoMemory();
        Py_CLEAR(self);
    }
    if (self) self->vectorcall = snapshot_call;
    for (Py_ssize_t i = 0; self && i < n; i++) {
        if (entry_parse(&self->entries[i], PySequence_Fast_GET_ITEM(listed, i)))
            Py_CLEAR(self);
        else
            self->n = i + 1;
    }
    if (self) find_runs(self->entries, self->n);
    Py_DECREF(listed);
    return (PyObject *)self;
}

static int snapshot_traverse(Snapshot *self, visitproc visit, void *arg) {
    for (Py_ssize_t i = 0; i < self->n; i++) {
        Py_VISIT(self->entries[i].target);
        Py_VISIT(self->entries[i].key);
        Py_VISIT(self->entries[i].expected);
    }
    return 0;
}

static int snapshot_clear(Snapshot *self) {
    Py_ssize_t n = self->n;
    self->n = 0; /* first: dropping the last reference to something may run code that calls us */
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_CLEAR(self->entries[i].target);
        Py_CLEAR(self->entries[i].key);
        Py_CLEAR(self->entries[i].expected);
    }
    return 0;
}

static void snapshot_dealloc(Snapshot *self) {
    PyObject_GC_UnTrack(self);
    snapshot_clear(self);
    PyMem_Free(self->entries);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* ---- Launcher ---- */

typedef int32_t (*Prepare)(const DLTensor *in, const int64_t *given, int64_t *sizes, int64_t *out_shape);
/* 0, or 1 where there was no memory for what it keeps meanwhile. */
typedef int32_t (*Run)(void *const *in, void *const *out, const int64_t *sizes);

typedef struct {
    int ndim;
    DLDataType dtype;
    int order[64]; /* the dimension that lies at each place in memory, outermost first */
    int n_loose, loose[64]; /* dimensions of size 1 whose strides are given, after the sizes */
} OutputForm;

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *fallback; /* the same call in Python, which says what is wrong with an argument */
    Prepare prepare;
    Run run;
    int n_in, n_given, n_sizes, n_out, out_dims;
    OutputForm *outputs;
} Launcher;

static void allocation_failed(void *context, const char *kind, const char *message) {
    PyErr_Format(PyExc_RuntimeError, "%s: %s", kind, message);
}

/* A new tensor whose sizes in memory order are `shape`, before its loose strides; its address goes to `data`. NULL with
   an exception set. */
static PyObject *allocate(const OutputForm *form, const int64_t *shape, void **data, int64_t *bytes) {
    DLTensor prototype = {0};
    prototype.device.device_type = kDLCPU;
    prototype.ndim = form->ndim;
    prototype.dtype = form->dtype;
    prototype.shape = (int64_t *)shape;
    DLManagedTensorVersioned *managed = NULL;
    if (exchange->managed_tensor_allocator(&prototype, &managed, NULL, allocation_failed)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "an output could not be allocated");
        return NULL;
    }
    DLTensor *t = &managed->dl_tensor;
    int64_t running = 1, elements = 1;
    for (int i = form->ndim - 1; i >= 0; i--) {
        int64_t size = shape[i];
        t->shape[form->order[i]] = size;
        t->strides[form->order[i]] = running;
        running *= size > 1 ? size : 1; /* as torch counts strides where there are no elements */
        elements *= size;
    }
    for (int i = 0; i < form->n_loose; i++) t->strides[form->loose[i]] = shape[form->ndim + i];
    *data = (char *)t->data + t->byte_offset;
    *bytes += elements * (form->dtype.bits / 8);
    void *made = NULL;
    if (exchange->managed_tensor_to_py_object_no_sync(managed, &made)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "an output could not be made");
        return NULL;
    }
    return (PyObject *)made;
}

static PyObject *launcher_call(PyObject *object, PyObject *const *args, size_t nargsf, PyObject *kwnames) {
    Launcher *self = (Launcher *)object;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if ((kwnames && PyTuple_GET_SIZE(kwnames)) || nargs != self->n_in + self->n_given)
        return PyObject_Vectorcall(self->fallback, args, nargs, kwnames);
    DLTensor in[self->n_in + 1];
    void *sources[self->n_in + 1], *targets[self->n_out];
    int64_t given[self->n_given + 1], sizes[self->n_sizes + 1], shape[self->out_dims + 1];
    for (int k = 0; k < self->n_in; k++) {
        int read = describe(args[k], &in[k]);
        if (read < 0) return NULL;
        if (!read) return PyObject_Vectorcall(self->fallback, args, nargs, NULL);
        sources[k] = (char *)in[k].data + in[k].byte_offset;
    }
    for (int k = 0; k < self->n_given; k++) {
        given[k] = PyLong_AsLongLong(args[self->n_in + k]);
        if (given[k] == -1 && PyErr_Occurred()) return NULL;
    }
    if (self->prepare(in, given, sizes, shape)) return PyObject_Vectorcall(self->fallback, args, nargs, NULL);
    PyObject *result = NULL, *made = NULL;
    if (self->n_out > 1 && !(result = PyTuple_New(self->n_out))) return NULL;
    const int64_t *at = shape;
    int64_t bytes = 0;
    for (int k = 0; k < self->n_out; k++) {
        made = allocate(&self->outputs[k], at, &targets[k], &bytes);
        if (!made) {
            Py_XDECREF(result);
            return NULL;
        }
        if (result) PyTuple_SET_ITEM(result, k, made);
        at += self->outputs[k].ndim + self->outputs[k].n_loose;
    }
    int32_t failed;
    if (bytes >= RELEASE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        failed = self->run(sources, targets, sizes);
        Py_END_ALLOW_THREADS
    } else {
        failed = self->run(sources, targets, sizes);
    }
    if (!result) result = made;
    if (failed) {
        Py_DECREF(result);
        return PyErr_NoMemory();
    }
    return result;
}

static int form_parse(OutputForm *form, PyObject *tuple) {
    int code, bits;
    PyObject *order, *loose;
    if (!PyTuple_Check(tuple) ||
        !PyArg_ParseTuple(tuple, "iiO!O!:output", &code, &bits, &PyTuple_Type, &order, &PyTuple_Type, &loose)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "an output is a tuple");
        return -1;
    }
    form->ndim = (int)PyTuple_GET_SIZE(order);
    form->dtype = (DLDataType){(uint8_t)code, (uint8_t)bits, 1};
    uint64_t seen = 0;
    for (int i = 0; form->ndim <= 64 && i < form->ndim; i++) {
        long dim = PyLong_AsLong(PyTuple_GET_ITEM(order, i));
        if (dim == -1 && PyErr_Occurred()) return -1;
        if (dim >= 0 && dim < form->ndim) seen |= UINT64_C(1) << dim;
        form->order[i] = (int)dim;
    }
    uint64_t all = form->ndim == 64 ? UINT64_MAX : (UINT64_C(1) << (form->ndim & 63)) - 1;
    form->n_loose = (int)PyTuple_GET_SIZE(loose);
    for (int i = 0; form->ndim <= 64 && form->n_loose <= form->ndim && i < form->n_loose; i++) {
        long dim = PyLong_AsLong(PyTuple_GET_ITEM(loose, i));
        if (dim == -1 && PyErr_Occurred()) return -1;
        if (dim < 0 || dim >= form->ndim) seen = 0;
        form->loose[i] = (int)dim;
    }
    if (form->ndim <= 64 && form->n_loose <= form->ndim && seen == all) return 0;
    PyErr_SetString(PyExc_ValueError, "an output's order is a permutation of at most 64 dimensions, some of them loose");
    return -1;
}

static PyObject *launcher_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"prepare", "run", "inputs", "given", "sizes", "outputs", "fallback", NULL};
    unsigned long long prepare, run;
    int n_in, n_given, n_sizes;
    PyObject *outputs, *fallback;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KKiiiO!O:Launcher", names, &prepare, &run, &n_in, &n_given,
                                     &n_sizes, &PyTuple_Type, &outputs, &fallback))
        return NULL;
    Py_ssize_t n_out = PyTuple_GET_SIZE(outputs);
    if (!prepare || !run || n_in < 0 || n_given < 0 || n_sizes < 0 || n_in > 1024 || n_given > 1024 ||
        n_sizes > 1024 || n_out < 1 || n_out > 256) {
        PyErr_SetString(PyExc_ValueError, "a launcher needs two addresses, counts of at most 1024, and 1 to 256 outputs");
        return NULL;
    }
    Launcher *self = (Launcher *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->vectorcall = launcher_call;
    self->fallback = Py_NewRef(fallback);
    self->prepare = (Prepare)(uintptr_t)prepare;
    self->run = (Run)(uintptr_t)run;
    self->n_in = n_in, self->n_given = n_given, self->n_sizes = n_sizes, self->n_out = (int)n_out;
    self->outputs = PyMem_Calloc(n_out, sizeof(OutputForm));
    if (!self->outputs) PyErr_NoMemory();
    for (Py_ssize_t k = 0; self->outputs && !PyErr_Occurred() && k < n_out; k++)
        if (!form_parse(&self->outputs[k], PyTuple_GET_ITEM(outputs, k)))
            self->out_dims += self->outputs[k].ndim + self->outputs[k].n_loose;
    if (PyErr_Occurred()) Py_CLEAR(self);
    return (PyObject *)self;
}

static int launcher_traverse(Launcher *self, visitproc visit, void *arg) {
    Py_VISIT(self->fallback);
    return 0;
}

static int launcher_clear(Launcher *self) {
    Py_CLEAR(self->fallback);
    return 0;
}

static void launcher_dealloc(Launcher *self) {
    PyObject_GC_UnTrack(self);
    launcher_clear(self);
    PyMem_Free(self->outputs);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* ---- the module ---- */

#define CALLABLE_TYPE(NAME, LOWER)                                                                                   \
    static PyTypeObject NAME##Type = {                                                                               \
        PyVarObject_HEAD_INIT(NULL, 0).tp_name = "fusion_native." #NAME,                                             \
        .tp_basicsize = sizeof(NAME),                                                                                \
        .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,                            \
        .tp_vectorcall_offset = offsetof(NAME, vectorcall),                                                          \
        .tp_call = PyVectorcall_Call,                                                                                \
        .tp_new = LOWER##_new,                                                                                       \
        .tp_traverse = (traverseproc)LOWER##_traverse,                                                               \
        .tp_clear = (inquiry)LOWER##_clear,                                                                          \
        .tp_dealloc = (destructor)LOWER##_dealloc,                                                                   \
    }

CALLABLE_TYPE(Guard, guard);
CALLABLE_TYPE(Snapshot, snapshot);
CALLABLE_TYPE(Launcher, launcher);

static PyCFunction method_of(PyObject *descriptor) {
    if (!Py_IS_TYPE(descriptor, &PyMethodDescr_Type)) return NULL;
    PyMethodDef *method = ((PyMethodDescrObject *)descriptor)->d_method;
    return method->ml_flags == METH_NOARGS ? method->ml_meth : NULL;
}

/* initialize(exchange capsule, tensor types, Tensor.is_neg, Tensor.is_conj, the absent sentinel,
 *            pointer_at, keys_at, lazy_mask) */
static PyObject *initialize(PyObject *module, PyObject *args) {
    PyObject *capsule, *types, *neg, *conj, *sentinel;
    unsigned long long mask;
    Py_ssize_t pointer, keys;
    if (!PyArg_ParseTuple(args, "OO!OOOnnK:initialize", &capsule, &PyTuple_Type, &types, &neg, &conj, &sentinel,
                          &pointer, &keys, &mask))
        return NULL;
    const DLPackExchangeAPI *found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (!found) return NULL;
    if (found->header.version.major != DLPACK_MAJOR_VERSION || !found->dltensor_from_py_object_no_sync) {
        PyErr_Format(PyExc_RuntimeError, "torch's DLPack exchange has version %u.%u, not %d",
                     found->header.version.major, found->header.version.minor, DLPACK_MAJOR_VERSION);
        return NULL;
    }
    if (!method_of(neg) || !method_of(conj) || PyTuple_GET_SIZE(types) > MAX_TYPES) {
        PyErr_SetString(PyExc_TypeError, "is_neg and is_conj are methods without arguments; at most 4 types are known");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types); i++)
        if (!PyType_Check(PyTuple_GET_ITEM(types, i))) {
            PyErr_SetString(PyExc_TypeError, "the tensor types are types");
            return NULL;
        }
    for (n_tensor_types = 0; n_tensor_types < PyTuple_GET_SIZE(types); n_tensor_types++)
        tensor_types[n_tensor_types] = (PyTypeObject *)Py_NewRef(PyTuple_GET_ITEM(types, n_tensor_types));
    exchange = found;
    is_neg = method_of(neg);
    is_conj = method_of(conj);
    absent = Py_NewRef(sentinel);
    pointer_at = pointer, keys_at = keys, lazy_mask = mask;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"initialize", initialize, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "fusion_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_fusion_native(void) {
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    if (PyModule_AddType(module, &GuardType) || PyModule_AddType(module, &SnapshotType) ||
        PyModule_AddType(module, &LauncherType)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
